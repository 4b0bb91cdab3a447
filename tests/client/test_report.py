from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from neuroglot.analyses.effects import Effect, Metric
from neuroglot.analyses.pipeline import Outcome, publish
from neuroglot.cli.report import report
from neuroglot.errors import AnalysisError
from neuroglot.report.findings import findings, headline
from neuroglot.report.page import inline_svg
from neuroglot.runs import Run
from tests.client.random_results import IDENTITY, random_run


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return publish(random_run(tmp_path_factory.mktemp("runs") / "run", count=30, answered=27))


class Reader(HTMLParser):
    """Collects ids, references and tables of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                self.references.append(value or "")


def test_the_page_has_every_figure_and_refers_to_nothing_outside(outcome: Outcome) -> None:
    page = outcome.report.read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("<svg") == len(list(outcome.study.analyses())) == 5
    reader = Reader(page)
    assert all(reference.startswith("#") for reference in reader.references)
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_the_page_says_what_was_run(outcome: Outcome) -> None:
    page = outcome.report.read_text(encoding="utf-8")
    for said in (
        IDENTITY,
        outcome.run.settings.data_sha256,
        "27 of 30 answered",
        "3 of 30 groups have no answer",
        "no evidence about large language models",
        "3 draws of each control, seed 0",
        "server 0.1.0",
        "pytest (",
        "The capital of Afghanistan is",
        "阿富汗的首都是",
    ):
        assert said in page, said


def test_every_caption_has_its_sample_size(outcome: Outcome) -> None:
    for analysis in outcome.study.analyses():
        assert re.search(r"\b27\b|\b270\b", analysis.caption()), analysis.name


def test_tables_are_on_disk_and_pandas_alone_reads_them(outcome: Outcome) -> None:
    for fold in outcome.study.folds():
        folder = outcome.run.folder / "tables"
        table = fold.table()
        for read in (pd.read_csv(folder / f"{fold.name}.csv"), pd.read_parquet(folder / f"{fold.name}.parquet")):
            assert list(read.columns) == list(table.columns)
            numbers, texts = table.select_dtypes("number").columns, table.select_dtypes(exclude="number").columns
            np.testing.assert_allclose(read[numbers].astype(float), table[numbers].astype(float), rtol=1e-12)
            assert read[texts].fillna("").equals(table[texts].fillna(""))
        said = json.loads(pq.read_schema(folder / f"{fold.name}.parquet").metadata[b"neuroglot"])
        assert said["bundle_identity"] == IDENTITY
        assert said["sessions"][0]["command"] == "pytest"


def test_figures_are_on_disk(outcome: Outcome) -> None:
    for analysis in outcome.study.analyses():
        folder = outcome.run.folder / "figures"
        assert (folder / f"{analysis.name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{analysis.name}.svg").read_text(encoding="utf-8")


def test_the_command_writes_everything_anew_without_a_server(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=6, answered=3)
    ended = CliRunner().invoke(report, [str(run.folder)])
    assert ended.exit_code == 0, ended.output
    assert f"Report: {run.folder / 'report.html'}" in ended.stdout
    assert "3 of 6 groups have no answer" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_without_an_answer_has_no_report(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=3, answered=0)
    run.failures["S0/0"] = "the prompt is too long"
    with pytest.raises(AnalysisError, match="has no answer to analyse: every group failed, the prompt is too long"):
        publish(run)


LOSS = Effect(
    metric=Metric.EXACT,
    type="all-shared",
    baseline=90.0,
    without=40.0,
    control=80.0,
    control_lowest=78.0,
    control_highest=82.0,
    difference=-40.0,
    low=-50.0,
    high=-30.0,
    p=0.0001,
    p_holm=0.0003,
    active_neurons=12.0,
    rows=100,
    clusters=10,
    draws=3,
)
NOTHING = replace(LOSS, type="specific", without=80.5, difference=0.5, low=-1.0, high=2.0, p=0.4, p_holm=0.4)
NATS = replace(LOSS, metric=Metric.LOG_PROBABILITY, baseline=-0.01, without=-0.03, control=-0.012, difference=-0.018)
NO_NATS = replace(NATS, type="specific", p_holm=0.4)


def said(*effects: Effect) -> str:
    return headline(effects).replace("\N{MINUS SIGN}", "-")


def test_the_headline_names_the_type_whose_loss_costs_more_than_random() -> None:
    words = said(NOTHING, LOSS, NO_NATS)
    assert words.startswith("Losing the all-shared neurons costs more than losing as many random active neurons: ")
    assert "from 90.0 % to 40.0 %, and without random ones to 80.0 %" in words
    assert "(difference -40.0 points, 95 % interval -50.0 to -30.0, corrected p < 0.001)" in words
    assert "For the specific neurons no difference from random ones was found (+0.5 points, p = 0.40)." in words


def test_the_headline_can_say_that_a_loss_costs_less() -> None:
    less = replace(LOSS, type="partial-shared", without=88.0, difference=8.0, low=6.0, high=10.0)
    assert said(less, NO_NATS).startswith("Losing the partial-shared neurons costs less than losing as many random")
    both = said(less, LOSS, NO_NATS)
    assert both.startswith("Losing the all-shared neurons costs more")
    assert "Losing the partial-shared neurons costs less than random ones: it goes to 88.0 %" in both


def test_the_headline_does_not_make_up_a_finding() -> None:
    words = said(NOTHING, replace(NOTHING, type="all-shared", p_holm=0.02), NO_NATS)
    assert words.startswith("In exact match (90.0 % with all neurons), no type's loss was found to differ")
    assert "(nearest to it: all-shared, +0.5 points, corrected p = 0.020)" in words
    assert words.endswith(
        "In the log-probability of the gold answer, no type's loss was found to differ from random ones."
    )


def test_the_headline_tells_what_only_the_log_probability_shows() -> None:
    words = said(NOTHING, NATS, NO_NATS)
    assert words.endswith(
        "tells them apart: without all-shared -0.02 nats, random -0.002 (p < 0.001); "
        "no difference was found for specific."
    )


def test_a_difference_that_rounds_to_nothing_has_no_sign() -> None:
    assert "specific, 0.0 points" in said(replace(NOTHING, difference=-0.01), NO_NATS)


def test_findings_follow_from_the_tables(outcome: Outcome) -> None:
    words = findings(outcome.study, outcome.run)
    assert words.headline == headline(outcome.study.effects.effects())
    by_topic = dict(words.comparisons)
    shares = outcome.study.types.table().groupby("type")["share_percent"].mean()
    assert f"{shares['partial-shared']:.0f} % partial-shared" in by_topic["Types"]
    assert "falls furthest without the partial-shared ones" in by_topic["Ablations"]


@pytest.fixture(scope="module")
def of_two_components(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return publish(random_run(tmp_path_factory.mktemp("runs") / "two", count=6, encoder=(5, 57)))


def test_encoder_and_decoder_are_told_apart(of_two_components: Outcome) -> None:
    study = of_two_components.study
    by_topic = dict(findings(study, of_two_components.run).comparisons)
    types, top = study.types.table(), study.top.table()
    for component in ("encoder", "decoder"):
        begins = f"n the {component}, over all layers, the neurons are"
        shares = types[types["component"] == component].groupby("type")["share_percent"].mean()
        lead = top[top["component"] == component].groupby("type")["share_percent"].mean().max()
        assert re.search(rf"[Ii]{begins} [^;]*\b{shares['partial-shared']:.0f} % partial-shared", by_topic["Types"])
        assert re.search(
            rf"In the {component}, among the top 5 % of contribution, \S+ neurons lead with {lead:.0f} %",
            by_topic["Contribution"],
        )
    assert re.search(r"\(layer \d of the (encoder|decoder): ", by_topic["Languages"])
    assert "among the 57 encoder neurons and 41 decoder neurons of a layer" in study.types.caption()
    assert "(3 of 57 encoder neurons and 3 of 41 decoder neurons)" in study.top.caption()
    page = of_two_components.report.read_text(encoding="utf-8")
    assert "encoder of 5 layers x 57 neurons, decoder of 3 layers x 41 neurons" in page
    assert "at the last prompt token (in the decoder: the start token)" in page


def test_it_says_in_which_components_neurons_were_deactivated(of_two_components: Outcome, tmp_path: Path) -> None:
    alike, alone = (
        f"Neurons are deactivated in {where}." for where in ("encoder and decoder alike", "the encoder alone")
    )
    run = random_run(tmp_path / "run", count=3, encoder=(5, 57), component="encoder")
    for study, said in ((of_two_components.study, alike), (publish(Run.open(run.folder)).study, alone)):
        for words in (
            study.accuracy.caption(),
            study.effects.caption(),
            dict(findings(study, run).comparisons)["Ablations"],
        ):
            assert said in words
    printed = CliRunner().invoke(report, [str(run.folder)]).stdout
    assert alone in " ".join(printed.split())
    assert "ablations in the encoder alone" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_of_one_component_no_place_is_named(outcome: Outcome) -> None:
    page = outcome.report.read_text(encoding="utf-8")
    assert "encoder" not in re.sub("decoder", "", page)
    assert "Neurons are deactivated in" not in page


def test_what_the_paper_says_of_fact_probing_is_said_of_fact_probing_only(outcome: Outcome) -> None:
    run = Run.open(outcome.run.folder)
    run.settings = replace(run.settings, task_kind="natural language inference")
    words = findings(outcome.study, run)
    assert not any("fact probing" in sentence for _, sentence in words.comparisons)


def test_two_inlined_figures_do_not_share_ids() -> None:
    svg = '<?xml version="1.0"?><svg width="1pt" viewBox="0 0 1 2"><path id="a"/><use xlink:href="#a"/></svg>'
    inlined = inline_svg(svg, "one", 'a "label"')
    assert inlined.startswith('<svg viewBox="0 0 1 2" role="img" aria-label="a &#34;label&#34;">')
    assert 'id="one-a"' in inlined
    assert 'href="#one-a"' in inlined
