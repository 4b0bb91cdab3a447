"""Inline SVG for HTML pages."""

from __future__ import annotations

import re

from markupsafe import Markup

_LONG = re.compile(r"-?\d+\.\d{3,}")
# Scales are not rounded: glyphs are scaled and need all digits.
_COORDINATES = re.compile(r'(?<= )(?:d|x|y|width|height)="[^"]*"|translate\([^)]*\)')


def inline_svg(svg: str, name: str, label: str) -> Markup:
    """Convert an SVG file to inline SVG: without prolog, with unique ids, of flexible width, with an ARIA label.

    Also reduces its size: unreferenced ids are removed, and coordinates are rounded to a hundredth of a point.

    Args:
        svg: the SVG as saved.
        name: prefix of its ids; unique in the page.
        label: text alternative for screen readers.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    body = _own_ids(body, name)
    body = _COORDINATES.sub(lambda match: " ".join(_LONG.sub(_rounded, match[0]).split()), body)
    body = re.sub(r'(?<= style=")[^"]*', lambda match: re.sub(r"(?<=[:;]) ", "", match[0]), body)
    body = re.sub(r">\s+<", "><", body)
    opening, rest = body.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return Markup(f'{opening} role="img" aria-label="{Markup.escape(label)}">{rest}')  # noqa: S704 - our own SVG


def _own_ids(body: str, name: str) -> str:
    """Rename every referenced id with the prefix `name`, and remove the other ids."""
    referred = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    names = {old: f"{name}-{number}" for number, old in enumerate(referred)}
    body = re.sub(r' id="([^"]*)"', lambda match: f' id="{names[match[1]]}"' if match[1] in names else "", body)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda match: f"{match[1]}{names[match[2]]}", body)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
