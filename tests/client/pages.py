"""Reports of random runs, and a reader of them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from neuroglot.analyses.figures.output import to_svg
from neuroglot.analyses.study import Study
from neuroglot.pipeline.pipeline import study_of
from neuroglot.report.page import page
from neuroglot.runs.run import Run
from tests.client.random_results import random_run

ANALYSES = ("effects", "accuracy", "types_by_layer", "active_by_language", "thresholds", "answers")
"""Of every sort: with figure and without, one table and two, short ones and a long one."""


def page_of(run: Run) -> tuple[str, Study]:
    """The page of a run, without the files beside it, and its study."""
    study = study_of(run)
    return page(run, study, {one.name: to_svg(one.figure(), one.name) for one in study.analyses()}), study


def long_run(folder: Path) -> Run:
    """A run of a model with an encoder of 5 layers and a decoder of 30: one of its tables has 280 rows."""
    return random_run(folder, count=6, layers=30, neurons=11, encoder=(5, 13), analyses=ANALYSES)


class Reader(HTMLParser):
    """Collects ids, references and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.open_tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open_tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self.open_tags and self.open_tags.pop() != tag:
            pass
