"""Figures within a page."""

from __future__ import annotations

import re

from markupsafe import Markup

_LONG = re.compile(r"-?\d+\.\d{3,}")
_PLACES = re.compile(r'(?<= )(?:d|x|y|width|height)="[^"]*"|translate\([^)]*\)')  # and no scales: glyphs are scaled


def inline_svg(svg: str, name: str, label: str) -> Markup:
    """An SVG that can stand among others in a page: no prolog, its own ids, as wide as there is room, with a label.

    It is also made smaller: ids that nothing refers to go, and so does what is finer than a hundredth of a point.

    Args:
        svg: as it was saved.
        name: put in front of its ids; unique in a page.
        label: what it shows, for those who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    body = _own_ids(body, name)
    body = _PLACES.sub(lambda place: " ".join(_LONG.sub(_rounded, place[0]).split()), body)
    body = re.sub(r'(?<= style=")[^"]*', lambda style: re.sub(r"(?<=[:;]) ", "", style[0]), body)
    body = re.sub(r">\s+<", "><", body)
    opening, rest = body.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return Markup(f'{opening} role="img" aria-label="{Markup.escape(label)}">{rest}')  # noqa: S704 - our own SVG


def _own_ids(body: str, name: str) -> str:
    """The same, with the page's name for every id that is referred to, and without the others."""
    referred = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    names = {old: f"{name}-{number}" for number, old in enumerate(referred)}
    body = re.sub(r' id="([^"]*)"', lambda one: f' id="{names[one[1]]}"' if one[1] in names else "", body)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda one: f"{one[1]}{names[one[2]]}", body)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
