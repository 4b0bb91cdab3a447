"""Right answers, their tokens, and runs side by side: what a run's folder says, against transformers with hooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from tokenizers import Tokenizer

import neuroglot as ng
from neuroglot.analyses.base.ablations import ABLATED
from neuroglot.cli import main
from neuroglot.runs.run import Run
from tests import definitions
from tests.checkpoints import RandomModel
from tests.exporter.reference import Transformers
from tests.server.reference import Change, Model, greedy, load, logits, watched

LANGUAGES = ("en", "de", "it")
PROMPTS = {"en": "The capital of {} is", "de": "Die Hauptstadt von {} ist", "it": "A capital: {}"}
RIGHT_OF = {"bloom": ("Laos", "Mali", "Togo"), "mt0": ("Chad", "Oman")}
"""Whose answers are what a model says, as far as that is text."""
NEARLY_RIGHT = "Fiji"  # the first token is what BLOOM says, the second is not
WRONG = "Lima"
MERGED = ng.Group(dict.fromkeys(LANGUAGES, "La France: Par"), dict.fromkeys(LANGUAGES, "is"), id="merged")
"""Of which byte-level BPE merges prompt and answer: `Paris` is one token."""
EOS = 2
ABLATIONS = {"baseline": None, **{f"w/o {kind.label}": kind for kind in ABLATED}}


@dataclass(frozen=True)
class Ran:
    """A run, and the model that it asked, in transformers."""

    family: str
    shots: int
    run: Run
    model: Model
    tokenizer: Tokenizer

    @cached_property
    def groups(self) -> list[ng.Group]:
        return list(self.run.examples())

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.run.folder / "tables" / f"{name}.parquet")

    def prompt(self, group: ng.Group, language: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(group.prompts[language]).ids
        return tokens

    def gold(self, group: ng.Group, language: str) -> tuple[list[int], bool]:
        """Tokens of the answer, and whether the tokenizer goes on from the prompt with them."""
        answer, prompt = group.answers[language][0], self.prompt(group, language)
        whole = self.tokenizer.encode(group.prompts[language] + answer).ids
        if isinstance(self.model, Transformers) and whole[: len(prompt)] == prompt:
            return whole[len(prompt) :], True
        alone: list[int] = self.tokenizer.encode(answer, add_special_tokens=False).ids
        return alone, not isinstance(self.model, Transformers)

    @cached_property
    def activations(self) -> list[dict[str, NDArray[np.float32]]]:
        """Of each group `[languages, layers, neurons]` at the last token, by component."""
        rows = [[watched(self.model, self.prompt(group, one)) for one in LANGUAGES] for group in self.groups]
        return [{name: np.stack([row[name][:, -1] for row in group]) for name in group[0]} for group in rows]

    def shares(self, component: str) -> NDArray[np.float64]:
        """Share of each type among all neurons of a component in percent, `[groups, 4]`."""
        codes = np.array([definitions.type_codes(group[component]).ravel() for group in self.activations])
        return np.stack([100 * (codes == code).mean(axis=1) for code in range(4)], axis=1)

    def changes(self, place: int, kind: ng.NeuronType | None) -> list[Change]:
        """One type set to 0 in a group."""
        if kind is None:
            return []
        return [
            Change(definitions.type_codes(of_component) == kind, torch.zeros_like, component=name)
            for name, of_component in self.activations[place].items()
        ]

    def exact(self, variant: str) -> NDArray[np.bool_]:
        """Whether every gold token is the first choice, given those before it, `[groups, languages]`."""
        found = np.zeros((len(self.groups), len(LANGUAGES)), dtype=np.bool_)
        for (place, group), (row, language) in product(enumerate(self.groups), enumerate(LANGUAGES)):
            gold, _ = self.gold(group, language)
            changes = self.changes(place, ABLATIONS[variant])
            chosen = logits(self.model, self.prompt(group, language), gold[:-1], changes).argmax(axis=-1)
            found[place, row] = chosen.tolist() == gold
        return found


def learned(model: Model, tokenizer: Tokenizer, name: str) -> dict[str, str]:
    """What a model says in each language, two tokens, up to the first that is not plain text; else a wrong answer."""
    answers = {}
    for language, prompt in PROMPTS.items():
        tokens = greedy(model, tokenizer.encode(prompt.format(name)).ids, [], 2, {EOS})
        said = "".join(tokenizer.decode([token]) for token in tokens)
        plain = next((place for place, one in enumerate(said) if not "!" <= one <= "~"), len(said))
        answers[language] = said[:plain] or WRONG
    return answers


@pytest.fixture(scope="module")
def ran(random_model: Callable[[str], RandomModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """The same groups, asked of two models, and of one of them with solved examples in front of them."""
    folder = tmp_path_factory.mktemp("runs")
    bundles = {family: random_model(family) for family in ("bloom", "mt0")}
    models = {family: load(one.checkpoint, family) for family, one in bundles.items()}
    tokenizers = {family: Tokenizer.from_file(str(one.bundle / "tokenizer.json")) for family, one in bundles.items()}
    answers = {name: learned(models[of], tokenizers[of], name) for of, names in RIGHT_OF.items() for name in names}
    nearly = learned(models["bloom"], tokenizers["bloom"], NEARLY_RIGHT)
    answers[NEARLY_RIGHT] = {language: f"{answer[0]}x" for language, answer in nearly.items()}
    data = folder / "groups.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for name, prompts, of_group in (
            *((name, {one: PROMPTS[one].format(name) for one in LANGUAGES}, of) for name, of in answers.items()),
            (MERGED.id, MERGED.prompts, MERGED.answers),
        ):
            separators = dict.fromkeys(LANGUAGES, "")
            file.write(json.dumps({"id": name, "prompts": prompts, "answers": of_group, "separators": separators}))
            file.write("\n")

    def ask(family: str, shots: int) -> Ran:
        with ng.connect(bundles[family].bundle) as client:
            outcome = ng.analyses.run(
                client.model(),
                ng.tasks.jsonl(data, shots=shots),
                folder / f"{family}-{shots}",
                analyses=("accuracy", "types_by_layer", "answers"),
                thresholds=(0.0,),
                draws=2,
                replicates=20,
            )
        assert not outcome.run.failures
        return Ran(family, shots, outcome.run, models[family], tokenizers[family])

    return {"bloom": ask("bloom", 0), "mt0": ask("mt0", 0), "bloom with examples": ask("bloom", 2)}


@pytest.mark.parametrize("name", ["bloom", "mt0", "bloom with examples"])
def test_exact_match_is_that_of_transformers_with_hooks(ran: dict[str, Ran], name: str) -> None:
    one = ran[name]
    table = one.table("accuracy").set_index(["variant", "language"])
    summary = one.table("accuracy_by_language").set_index(["measure", "variant"])
    right = {variant: one.exact(variant) for variant in ABLATIONS}
    for variant, of_groups in right.items():
        expected = dict(zip(LANGUAGES, 100 * of_groups.mean(axis=0), strict=True))
        for language, percent in expected.items():
            assert table.loc[(variant, language), "exact_percent"] == pytest.approx(percent)
            assert summary.loc[("exact", variant), language] == pytest.approx(percent)
        assert summary.loc[("exact", variant), "all"] == pytest.approx(100 * of_groups.mean())
    if not one.shots:  # what the answers were made for
        assert 0 < right["baseline"].mean() < 1
        assert any((of_groups != right["baseline"]).any() for of_groups in right.values())


def test_a_control_stands_in_the_table_of_languages_as_the_mean_of_its_draws(ran: dict[str, Ran]) -> None:
    for one in ran.values():
        draws = one.table("accuracy").query("condition == 'control'")
        summary = one.table("accuracy_by_language").set_index(["measure", "variant"])
        for kind, (measure, column) in product(ABLATED, (("exact", "exact_percent"), ("matches", "matches_percent"))):
            of_type = draws[draws["type"] == kind.label]
            assert sorted(of_type["draw"].unique()) == [0, 1]
            found = summary.loc[(measure, f"random-active control of {kind.label}")]
            for language in LANGUAGES:
                assert found[language] == pytest.approx(of_type.set_index("language").loc[language, column].mean())
            assert found["all"] == pytest.approx(of_type[column].mean())


@pytest.mark.parametrize("name", ["bloom", "mt0"])
def test_generated_texts_are_those_of_transformers(ran: dict[str, Ran], name: str) -> None:
    one = ran[name]
    table = one.table("accuracy").query("variant == 'baseline'").set_index("language")
    newlines = {token for token in range(one.tokenizer.get_vocab_size()) if "\n" in one.tokenizer.decode([token])}
    begins = []
    for language in LANGUAGES:
        starts, matches = [], []
        for group in one.groups:
            prompt, (gold, _) = one.prompt(group, language), one.gold(group, language)
            tokens = greedy(one.model, prompt, [], len(gold) + 4, {EOS} | newlines)
            text = definitions.normalised(one.tokenizer.decode(tokens))
            answer = definitions.normalised(group.answers[language][0])
            starts.append(text.startswith(answer))
            matches.append(text == answer)
        assert table.loc[language, "starts_with_answer_percent"] == pytest.approx(100 * np.mean(starts))
        assert table.loc[language, "matches_percent"] == pytest.approx(100 * np.mean(matches))
        begins += starts
    assert 0 < np.mean(begins) < 1


@pytest.mark.parametrize("name", ["bloom", "mt0", "bloom with examples"])
def test_answers_as_tokens(ran: dict[str, Ran], name: str) -> None:
    one = ran[name]
    table = one.table("answers").set_index("language")
    for language in LANGUAGES:
        gold = [one.gold(group, language) for group in one.groups]
        different = {tuple(tokens) for tokens, _ in gold}
        sharing = [tokens for tokens in different if any(tokens[0] == other[0] for other in different - {tokens})]
        found = table.loc[language]
        assert found["rows"] == len(one.groups)
        assert found["answers"] == len(different)
        assert found["sharing_first_token"] == len(sharing)
        assert found["tokenized_apart"] == sum(not joint for _, joint in gold)
        assert found["mean_gold_tokens"] == pytest.approx(np.mean([len(tokens) for tokens, _ in gold]))
        lengths = [len(one.prompt(group, language)) for group in one.groups]
        assert found["mean_prompt_tokens"] == pytest.approx(np.mean(lengths))
    assert table["sharing_first_token"].sum() > 0
    assert (table["tokenized_apart"] > 0).all() == (one.family == "bloom")


@pytest.fixture(scope="module")
def compared(ran: dict[str, Ran], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, pd.DataFrame]:
    """The tables of `neuroglot compare`, by name; BLOOM without examples is the first run."""
    out = tmp_path_factory.mktemp("compared")
    ended = CliRunner().invoke(main, ["compare", *(str(one.run.folder) for one in ran.values()), "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    return {path.stem: pd.read_parquet(path) for path in (out / "tables").glob("*.parquet")}


def of_run(table: pd.DataFrame, one: Ran) -> pd.DataFrame:
    """The rows of a joined table that are one run's."""
    return table[(table["model"] == one.run.settings.model) & (table["shots"] == one.shots)].reset_index(drop=True)


def expected_differences(first: Ran, other: Ran) -> Iterator[tuple[tuple[str, ...], NDArray[np.float64]]]:
    """Of each group, what differs, by measure, component, type and language."""
    for component in first.activations[0].keys() & other.activations[0].keys():
        shares = other.shares(component) - first.shares(component)
        yield from ((("share_percent", component, kind.label, ""), shares[:, kind]) for kind in ng.NeuronType)
    exact = 100.0 * other.exact("baseline") - 100.0 * first.exact("baseline")
    for row, language in enumerate(LANGUAGES):
        yield ("exact_percent", "", "", language), exact[:, row]
    yield ("exact_percent", "", "", "all"), exact.ravel()


def test_joined_tables_are_those_of_the_runs(ran: dict[str, Ran], compared: Mapping[str, pd.DataFrame]) -> None:
    for name in ("accuracy", "accuracy_by_language", "types_by_layer", "answers"):
        own = [one.table(name) for one in ran.values()]
        assert len(compared[name]) == sum(map(len, own))
        for one, table in zip(ran.values(), own, strict=True):
            found = of_run(compared[name], one)[table.columns]
            pd.testing.assert_frame_equal(found, table, check_dtype=False, rtol=1e-12)


def test_types_of_every_run_stand_side_by_side(ran: dict[str, Ran], compared: Mapping[str, pd.DataFrame]) -> None:
    seen: list[Sequence[float]] = []
    for one in ran.values():
        table = of_run(compared["shares_across_runs"], one).set_index(["component", "type"])["share_percent"]
        assert len(table) == 4 * len(one.activations[0])
        for component, kind in product(one.activations[0], ng.NeuronType):
            expected = one.shares(component)[:, kind].mean()
            assert table[component, kind.label] == pytest.approx(expected, abs=1e-9)
        seen.append(table["decoder"].tolist())
    assert len({tuple(shares) for shares in seen}) == len(ran)  # models, and numbers of examples, do differ


def test_differences_of_runs_are_paired(ran: dict[str, Ran], compared: Mapping[str, pd.DataFrame]) -> None:
    first, *others = ran.values()
    keys = ["measure", "component", "type", "language"]
    table = compared["differences_across_runs"]
    assert of_run(table, first).empty
    for other in others:
        found = of_run(table, other).set_index(keys)
        expected = dict(expected_differences(first, other))
        assert set(found.index) == set(expected)
        for key, differences in expected.items():
            difference = found.loc[key, "value"] - found.loc[key, "reference"]
            assert difference == pytest.approx(found.loc[key, "difference"], abs=1e-9)
            assert difference == pytest.approx(np.mean(differences), abs=1e-9)
        assert (found["difference"].abs().groupby("measure").max() > 0).all()
