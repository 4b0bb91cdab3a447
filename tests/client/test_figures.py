from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from neuroglot.analyses.ablations import Ablations
from neuroglot.analyses.output import to_svg
from neuroglot.analyses.study import Study
from neuroglot.analyses.style import FONT_SIZE, TYPE_COLOURS, TYPE_TEXT_COLOURS, spread
from neuroglot.tasks.capitals import LANGUAGES
from tests.client.random_results import random_examples, two_components

ABLATIONS = Ablations(draws=3, seed=0)


def study_of(layers: int, languages: tuple[str, ...]) -> Study:
    study = Study.of(languages, ABLATIONS, {})
    for example in random_examples(0, languages, 4, ABLATIONS, layers, neurons=40):
        study.add(example.result)
    return study


def study_of_two_components() -> Study:
    study = Study.of(LANGUAGES, ABLATIONS, {})
    decoders = random_examples(0, LANGUAGES, 4, ABLATIONS, layers=4, neurons=40)
    encoders = random_examples(1, LANGUAGES, 4, ABLATIONS, layers=6, neurons=30, component="encoder")
    for decoder, encoder in zip(decoders, encoders, strict=True):
        study.add(two_components(decoder, encoder))
    return study


STUDIES = {
    "one layer": lambda: study_of(1, ("en", "zh")),
    "few layers": lambda: study_of(4, LANGUAGES),
    "many layers": lambda: study_of(30, LANGUAGES),
    "two components": study_of_two_components,
}


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest) -> Study:
    return STUDIES[request.param]()


def component_of(axes: Axes) -> str:
    """The component that a panel's title names; the decoder where it names none."""
    title = axes.get_title(loc="left").split(", ")[-1]
    return title if title in ("encoder", "decoder") else "decoder"


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    return ((analysis.name, analysis.figure()) for analysis in study.analyses())


def test_nothing_is_drawn_outside_of_the_figure(study: Study) -> None:
    for name, figure in figures(study):
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert drawn.x0 > -0.02, name
        assert drawn.x1 < width + 0.02, name
        assert drawn.y0 > -0.02, name
        assert drawn.y1 < height + 0.02, name
        assert width == pytest.approx(3.4), name


def test_layers_are_true_indices(study: Study) -> None:
    for fold in (study.types, study.active, study.top):
        for axes in fold.figure().axes:
            layers, _ = fold.geometry[component_of(axes)]
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert all(tick == int(tick) and 0 <= tick < layers for tick in ticks), fold.name
            assert low < 0 < layers - 1 + 1e-9 < high < layers, fold.name


def test_encoder_and_decoder_have_panels_of_their_own() -> None:
    study = study_of_two_components()
    for fold, panels in ((study.types, 1), (study.active, 1), (study.top, len(LANGUAGES))):
        figure = fold.figure()
        assert [component_of(axes) for axes in figure.axes] == ["encoder", "decoder"] * panels
        for axes in figure.axes:
            layers, _ = fold.geometry[component_of(axes)]
            assert {len(line.get_ydata()) for line in axes.get_lines()} == {layers}
    for fold in (study.types, study.active):
        assert all(component_of(axes) in axes.get_ylabel() for axes in fold.figure().axes)


def test_every_type_has_its_colour_everywhere(study: Study) -> None:
    for fold in (study.types, study.top):
        for axes in fold.figure().axes:
            assert [to_hex(line.get_color()).upper() for line in axes.get_lines()] == [
                TYPE_COLOURS[kind].upper() for kind in (0, 2, 3, 1)
            ]


def test_lines_are_labelled_at_their_ends_without_overlap(study: Study) -> None:
    for fold, labels in ((study.types, 4), (study.active, len(study.active.languages))):
        figure = fold.figure()
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert len(axes.texts) == labels
            points = [
                axes.transData.transform(text.xy)[1] * 72 / figure.dpi + text.get_position()[1] for text in axes.texts
            ]
            assert np.diff(sorted(points)).min() > 1.15 * FONT_SIZE, fold.name


def test_equal_results_give_equal_svg() -> None:
    one, other = (study_of(2, ("en", "zh")) for _ in range(2))
    for (name, first), (_, second) in zip(figures(one), figures(other), strict=True):
        assert to_svg(first, name) == to_svg(second, name)


def test_the_caller_keeps_the_style_of_matplotlib() -> None:
    before = dict(matplotlib.rcParams)
    study_of(2, ("en", "zh")).accuracy.figure()
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
