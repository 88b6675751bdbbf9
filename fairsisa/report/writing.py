"""Pages made of templates, each written whole or not at all."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import jinja2

MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_])")


def markdown_text(text: object) -> str:
    """Return text that Markdown shows as it stands, on one line."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def code_block(lines: list[str]) -> str:
    """Return lines as a Markdown code block, fenced by more backticks than any line holds."""
    body = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{body}\n{fence}"


@cache
def templates() -> jinja2.Environment:
    """Return the room's templates; what is shown in a page is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairsisa.report"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown_text, "code_block": code_block}
    return environment


def write_whole(path: Path, body: str) -> Path:
    """Write a file under another name first, so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(body)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    return path
