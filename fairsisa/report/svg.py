"""A figure as SVG to stand inside an HTML page."""

from __future__ import annotations

import io
import re
from html import escape

from matplotlib.figure import Figure

from fairsisa.report.style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, styled

THEMED = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    BLUE: "blue",
    VERMILION: "vermilion",
    GREEN: "green",
    ORANGE: "orange",
    PURPLE: "purple",
    SKY: "sky",
}
PIXELS_PER_INCH = 105
TAG = re.compile(r"<[^<>]*>")


def inline_svg(figure: Figure, *, name: str, description: str) -> str:
    """Return the figure as an `<svg>` element that takes its colours from the page.

    Ids are made unique by the prefix `name`; the palette's colours become CSS variables (`--ink`, `--blue`, ...),
    so that the page can redefine them for a dark background; `description` is what a screen reader says.
    """
    text = io.StringIO()
    with styled():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    start = body.index(">") + 1
    width, height = figure.get_size_inches()
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {72 * width:g} {72 * height:g}" style="max-width: {PIXELS_PER_INCH * width:.0f}px">'
    )
    drawing = TAG.sub(lambda tag: _themed(tag.group(), name), body[start:])
    return f"{opening}<title>{escape(description)}</title>{drawing}"


def _themed(tag: str, name: str) -> str:
    """Rewrite one tag's ids, references and colours; the text between tags is never touched."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, variable in THEMED.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag
