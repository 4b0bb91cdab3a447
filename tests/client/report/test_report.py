from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from neuroglot.analyses.accuracy.effects import Effect
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.figures.svg import inline_svg
from neuroglot.analyses.study import Study
from neuroglot.cli.report import report
from neuroglot.errors import AnalysisError
from neuroglot.pipeline.pipeline import study_of
from neuroglot.report.findings import Findings, findings
from neuroglot.report.headline import headline
from neuroglot.report.sections import tables_of
from neuroglot.report.tables import Table
from neuroglot.runs.run import Run
from tests.client.pages import ANALYSES, Reader, page_of
from tests.client.random_results import IDENTITY, random_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return random_run(tmp_path_factory.mktemp("runs") / "run", count=36, answered=33, analyses=ANALYSES)


@pytest.fixture(scope="module")
def told(run: Run) -> tuple[str, Study]:
    return page_of(run)


def words_of(run: Run, study: Study) -> Findings:
    tables = {name: table for of_one in tables_of(study).values() for name, table in of_one.items()}
    return findings(run, study, tables)


def test_the_page_has_every_figure_and_refers_to_nothing_outside(told: tuple[str, Study]) -> None:
    page, study = told
    assert page.count("<figure>") == page.count("<svg") == len(list(study.analyses())) == 5
    reader = Reader(page)
    assert all(reference.startswith("#") for reference in reader.references)
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_every_analysis_has_a_section_in_the_order_of_the_registry_and_a_line_in_the_contents(
    told: tuple[str, Study],
) -> None:
    page, study = told
    titles = [fold.title for fold in study.folds.values()]
    assert Reader(page).headings == ["What was found", *titles, "One group of them", "What was run"]
    contents = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r"<a [^>]*>([^<]*)</a>", contents) == [
        title.replace("'", "&#39;") for title in Reader(page).headings
    ]


def test_the_page_says_what_was_run(run: Run, told: tuple[str, Study]) -> None:
    for said in (
        IDENTITY,
        run.settings.data_sha256,
        "33 of 36 answered",
        "3 of 36 groups have no answer",
        "no evidence about large language models",
        "3 draws of each control (random_active)",
        "server 0.1.0",
        "pytest (",
        "The capital of Afghanistan is",
        "阿富汗的首都是",
    ):
        assert said in told[0], said


def test_every_caption_has_its_sample_size(told: tuple[str, Study]) -> None:
    for analysis in told[1].analyses():
        assert re.search(r"\b33\b|\b330\b", analysis.caption()), analysis.name


def test_a_table_of_the_page_holds_what_its_csv_file_does(told: tuple[str, Study]) -> None:
    page, study = told
    for tables in tables_of(study).values():
        for name, frame in tables.items():
            (data,) = re.findall(rf'<script type="application/json" id="data-{name}">(.*?)</script>', page)
            content = json.loads(data)
            columns = [
                column["values"] if isinstance(column["values"], list) else [column["values"]] * content["rows"]
                for column in content["columns"]
            ]
            names = [column["name"] for column in content["columns"]]
            assert [names, *map(list, zip(*columns, strict=True))] == list(
                csv.reader(io.StringIO(frame.to_csv(index=False)))
            )


def test_numbers_are_shown_with_the_digits_that_matter() -> None:
    frame = pd.DataFrame({"n": [1234, 5], "share": [12.345, np.nan], "p": [0.00123, 1.0], "name": ["a,b", "</script>"]})
    table = Table.of("any", frame)
    shown = [[column.shown(cell) for column, cell in zip(table.columns, row, strict=True)] for row in table.rows]
    assert shown == [["1,234", "12.35", "0.00123", "a,b"], ["5", "", "1.00000", "</script>"]]
    assert "<" not in table.data
    assert json.loads(table.data)["columns"][3]["values"] == ["a,b", "</script>"]


def test_a_long_table_is_not_in_the_page_as_elements(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=3, layers=35, neurons=7, analyses=("thresholds",))
    page, study = page_of(run)
    assert len(study.folds["thresholds"].table()) == 280
    assert "200 of 280 rows are shown" in page
    assert page.count("<td") < 100
    assert len(page) < 500_000


def test_the_command_writes_everything_anew_without_a_server(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=6, answered=3, analyses=("effects", "types_by_layer"))
    ended = CliRunner().invoke(report, [str(run.folder)])
    assert ended.exit_code == 0, ended.output
    assert f"Report: {run.folder / 'report.html'}" in ended.stdout
    assert "3 of 6 groups have no answer" in (run.folder / "report.html").read_text(encoding="utf-8")
    refused = CliRunner().invoke(report, [str(run.folder), "--out", str(tmp_path / "page.html")])
    assert refused.exit_code == 2
    assert "written into its folder" in refused.stderr


def test_a_run_without_an_answer_has_no_report(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=3, answered=0)
    run.failures["S0/0"] = "the prompt is too long"
    with pytest.raises(AnalysisError, match="has no answer to analyse: every group failed, the prompt is too long"):
        study_of(run)


def test_without_ablations_there_is_no_headline_and_no_word_of_them(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", count=3, analyses=("types_by_layer",))
    page, study = page_of(run)
    words = words_of(run, study)
    assert words.headline == ""
    assert [topic for topic, _ in words.comparisons] == ["Types"]
    assert 'class="headline"' not in page
    assert "control touches" not in page


LOSS = Effect(
    metric=Metric.EXACT,
    type="all-shared",
    against="random_active",
    baseline=90.0,
    without=40.0,
    reference=80.0,
    reference_lowest=78.0,
    reference_highest=82.0,
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
NATS = replace(LOSS, metric=Metric.LOG_PROBABILITY, baseline=-0.01, without=-0.03, reference=-0.012, difference=-0.018)
NO_NATS = replace(NATS, type="specific", p_holm=0.4)


def said(*effects: Effect) -> str:
    return headline(effects).replace("\N{MINUS SIGN}", "-")


def test_the_headline_names_the_type_whose_loss_costs_more_than_random() -> None:
    words = said(NOTHING, LOSS, NO_NATS)
    assert words.startswith("Losing the all-shared neurons costs more than losing as many random active neurons: ")
    assert "from 90.0 % to 40.0 %, and without random ones to 80.0 %" in words
    assert "(difference -40.0 points, 95 % interval -50.0 to -30.0, corrected p < 0.001)" in words
    assert "For the specific neurons no difference from random ones was found (+0.5 points, p = 0.40)." in words


def test_the_headline_says_what_the_control_is() -> None:
    assert "than losing random neurons of the same contribution: " in said(replace(LOSS, against="random_mass"), NATS)


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


def test_findings_follow_from_the_tables(run: Run, told: tuple[str, Study]) -> None:
    study = told[1]
    words = words_of(run, study)
    by_topic = dict(words.comparisons)
    types = study.folds["types_by_layer"].table()
    shares = types.groupby("type")[["share_percent", "mismatched_share_percent"]].mean()
    assert f"{shares['share_percent']['partial-shared']:.0f} % partial-shared" in by_topic["Types"]
    assert "falls furthest without the partial-shared ones" in by_topic["Ablations"]
    (template,) = [sentence for sentence in words.cautions if "is the template" in sentence]
    assert f"{shares['share_percent']['all-shared']:.1f} % of the neurons are all-shared" in template
    assert f"{shares['mismatched_share_percent']['all-shared']:.1f} % where every language" in template
    assert words_in_page(words, told[0])


def words_in_page(words: Findings, page: str) -> bool:
    shown = page.replace("\N{NO-BREAK SPACE}", " ").replace("&#39;", "'").replace("&lt;", "<")
    return all(sentence in shown for sentence in (words.headline, *dict(words.comparisons).values(), *words.cautions))


def test_what_is_wrong_with_the_data_is_said(run: Run, told: tuple[str, Study]) -> None:
    damaged = Run.open(run.folder)
    damaged.settings = replace(run.settings, problems={"empty answer": 1200})
    assert any("left out: 1,200 x empty answer" in sentence for sentence in words_of(damaged, told[1]).cautions)
    assert not any("problems" in sentence for sentence in words_of(run, told[1]).cautions)


def test_what_the_paper_says_of_fact_probing_is_said_of_fact_probing_only(run: Run, told: tuple[str, Study]) -> None:
    other = Run.open(run.folder)
    other.settings = replace(other.settings, task_kind="natural language inference")
    assert any("fact probing" in sentence for _, sentence in words_of(run, told[1]).comparisons)
    assert not any("fact probing" in sentence for _, sentence in words_of(other, told[1]).comparisons)


def test_encoder_and_decoder_are_told_apart(tmp_path: Path) -> None:
    analyses = ("effects", "types_by_layer", "active_by_language")
    run = random_run(tmp_path / "run", count=6, encoder=(5, 57), component="encoder", analyses=analyses)
    page, study = page_of(run)
    words = words_of(run, study)
    by_topic = dict(words.comparisons)
    types = study.folds["types_by_layer"].table()
    for component in ("encoder", "decoder"):
        shares = types[types["component"] == component].groupby("type")["share_percent"].mean()
        begins = f"n the {component}, over all layers, the neurons are"
        assert re.search(rf"[Ii]{begins} [^;]*\b{shares['partial-shared']:.0f} % partial-shared", by_topic["Types"])
    assert re.search(r"\(layer \d of the (encoder|decoder): ", by_topic["Languages"])
    assert "Neurons are deactivated in the encoder alone." in by_topic["Ablations"]
    assert "interventions in the encoder alone" in page
    assert "encoder of 5 layers x 57 neurons, decoder of 3 layers x 41 neurons" in page
    assert "at the last prompt token (in the decoder: the start token)" in page


def test_of_one_component_no_place_is_named(told: tuple[str, Study]) -> None:
    assert "encoder" not in re.sub("decoder", "", told[0])
    assert "Neurons are deactivated in" not in told[0]


def test_two_inlined_figures_do_not_share_ids() -> None:
    svg = (
        '<?xml version="1.0"?><svg width="1pt" viewBox="0 0 1 2"><g id="unused"><path id="a" d="M 1.23456 0\nL 2 2"/>'
        '<use xlink:href="#a" transform="translate(1.005 0.12345) scale(0.015625)"/></g></svg>'
    )
    inlined = inline_svg(svg, "one", 'a "label"')
    assert inlined == (
        '<svg viewBox="0 0 1 2" role="img" aria-label="a &#34;label&#34;"><g><path id="one-0" d="M 1.23 0 L 2 2"/>'
        '<use href="#one-0" transform="translate(1 0.12) scale(0.015625)"/></g></svg>'
    )
