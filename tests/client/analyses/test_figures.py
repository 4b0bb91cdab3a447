from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from neuroglot.analyses.base.ablations import Ablations
from neuroglot.analyses.base.context import Context
from neuroglot.analyses.figures.output import to_svg
from neuroglot.analyses.figures.style import FONT_SIZE, TYPE_COLOURS, TYPE_TEXT_COLOURS, spread
from neuroglot.analyses.registry import ANALYSES
from neuroglot.analyses.study import Study
from neuroglot.request.groups import Group
from neuroglot.runs.settings import Options
from tests.client.random_results import random_examples, two_components

ABLATIONS = Ablations(draws=2, seed=0)
THRESHOLDS = (0.0, 0.5)
LANGUAGES = ("en", "de", "th", "zh")
TWO = ("en", "zh")

BY_LAYER = ("types_by_layer", "active_by_language", "repeating", "dead", "top_contributors", "thresholds")
OF_TYPES = ("types_by_layer", "top_contributors", "thresholds", "language_counts")


def study_of(
    layers: int,
    languages: tuple[str, ...] = LANGUAGES,
    encoder: tuple[int, int] | None = None,
    names: tuple[str, ...] = tuple(ANALYSES),
) -> Study:
    count = 5
    examples = random_examples(0, languages, count, ABLATIONS, layers, neurons=40, thresholds=THRESHOLDS)
    results = [example.result for example in examples]
    if encoder:
        others = random_examples(1, languages, count, ABLATIONS, *encoder, component="encoder", thresholds=THRESHOLDS)
        results = [two_components(*pair) for pair in zip(examples, others, strict=True)]
    groups = [Group(dict.fromkeys(languages, "?"), id=result.group_id) for result in results]
    context = Context(languages, Options(draws=2, thresholds=THRESHOLDS, replicates=20))
    study = Study(context.about(groups), names)
    for result in results:
        study.add(result)
    return study


STUDIES = {
    "one layer": lambda: study_of(1, TWO),
    "many layers": lambda: study_of(30, TWO),
    "two components": lambda: study_of(4, TWO, encoder=(6, 30)),
}


@cache
def drawn(name: str) -> tuple[Study, Mapping[str, Figure]]:
    """A study and its figures, drawn once for all tests."""
    study = STUDIES[name]()
    figures = {analysis.name: analysis.figure() for analysis in study.analyses()}
    for figure in figures.values():
        figure.draw_without_rendering()
    return study, figures


each_study = pytest.mark.parametrize("name", STUDIES)


def component_of(axes: Axes) -> str:
    """The component that a panel's title names; the decoder where it names none."""
    title = axes.get_title(loc="left").split(", ")[-1]
    return title if title in ("encoder", "decoder") else "decoder"


@each_study
def test_nothing_is_drawn_outside_of_the_figure(name: str) -> None:
    for analysis, figure in drawn(name)[1].items():
        extent = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert extent.x0 > -0.02, analysis
        assert extent.x1 < width + 0.02, analysis
        assert extent.y0 > -0.02, analysis
        assert extent.y1 < height + 0.02, analysis
        assert width == pytest.approx(3.4), analysis


@each_study
def test_layers_are_true_indices(name: str) -> None:
    study, figures = drawn(name)
    for analysis in BY_LAYER:
        for axes in figures[analysis].axes:
            layers, _ = study.folds[analysis].geometry[component_of(axes)]
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert all(tick == int(tick) and 0 <= tick < layers for tick in ticks), analysis
            assert low < 0 < layers - 1 + 1e-9 < high < layers, analysis


def test_encoder_and_decoder_have_panels_of_their_own() -> None:
    study, figures = drawn("two components")
    for analysis, panels in (("types_by_layer", 1), ("active_by_language", 1), ("top_contributors", len(TWO))):
        axes_of = figures[analysis].axes
        assert [component_of(axes) for axes in axes_of] == ["encoder", "decoder"] * panels
        for axes in axes_of:
            layers, _ = study.folds[analysis].geometry[component_of(axes)]
            assert {len(line.get_ydata()) for line in axes.get_lines()} == {layers}
    for analysis in ("types_by_layer", "active_by_language"):
        assert all(component_of(axes) in axes.get_ylabel() for axes in figures[analysis].axes)


@each_study
def test_every_type_has_its_colour_everywhere(name: str) -> None:
    wanted = [TYPE_COLOURS[kind].upper() for kind in (0, 2, 3, 1)]
    for analysis in OF_TYPES:
        for axes in drawn(name)[1][analysis].axes:
            found = [to_hex(line.get_color()).upper() for line in axes.get_lines()]
            assert found in (wanted, wanted * 2), analysis  # mismatched groups have the same colours


@each_study
def test_lines_are_labelled_at_their_ends_without_overlap(name: str) -> None:
    study, figures = drawn(name)
    for analysis, labels in (("types_by_layer", 4), ("active_by_language", len(study.context.languages))):
        figure = figures[analysis]
        for axes in figure.axes:
            assert len(axes.texts) == labels
            points = [
                axes.transData.transform(text.xy)[1] * 72 / figure.dpi + text.get_position()[1] for text in axes.texts
            ]
            assert np.diff(sorted(points)).min() > 1.15 * FONT_SIZE, analysis


def test_equal_results_give_equal_svg() -> None:
    one, other = (study_of(2, TWO, names=("types_by_layer", "accuracy")) for _ in range(2))
    for first, second in zip(one.analyses(), other.analyses(), strict=True):
        assert to_svg(first.figure(), first.name) == to_svg(second.figure(), second.name)


def test_the_caller_keeps_the_style_of_matplotlib() -> None:
    before = dict(matplotlib.rcParams)
    next(study_of(2, TWO, names=("types_by_layer",)).analyses()).figure()
    assert dict(matplotlib.rcParams) == before


def test_colours_of_text_can_be_read_on_white() -> None:
    for colour in TYPE_TEXT_COLOURS.values():
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
        assert 1.05 / (luminance + 0.05) >= 4.5, colour  # WCAG AA


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10))
def test_labels_are_spread_in_their_order_within_bounds(heights: list[float]) -> None:
    moved = spread(heights, gap=5, top=100)
    by_height = moved[np.argsort(heights, kind="stable")]
    assert np.all(np.diff(by_height) >= 5 - 1e-9)
    assert by_height[0] >= -1e-9
    assert by_height[-1] <= 100 + 1e-9


def test_labels_that_have_room_stay() -> None:
    assert spread([40, 10, 20], gap=5, top=100).tolist() == [40, 10, 20]


def test_labels_without_room_are_still_kept_apart() -> None:
    assert np.diff(spread([1, 1, 1], gap=5, top=4)).tolist() == [5, 5]
