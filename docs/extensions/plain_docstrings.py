"""Turns this project's plain docstrings into reStructuredText for autodoc.

A docstring here is read as it stands in the source: paragraphs, lines of `name : meaning`, formulas
that are indented, examples that run. Each kind of block becomes what it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_MEANING = re.compile(r"(?P<names>\*{0,2}\w[\w, ]*?) :(?: (?P<text>.*)|$)")
_NEXT_MEANING = re.compile(r" {2,}(?=\w[\w, ]* : )")
_MARKUP = re.compile(r"([\\*_|])")


def as_markup(docstring: list[str]) -> list[str]:
    """Turn the lines of a docstring into lines of markup.

    >>> as_markup(["Count `n`.", "", "n : >= 0, how", "    many"])
    ['Count ``n``.', '', '``n``', '    >= 0, how many', '']
    """
    return [line for block in _blocks(docstring) for line in [*_block_as_markup(block), ""]]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines between empty ones."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def _block_as_markup(block: list[str]) -> list[str]:
    if block[0].startswith(">>>"):
        return [".. code-block:: pycon", "", *_indented(block)]
    if all(line.startswith("    ") for line in block):
        return ["::", "", *_indented(block)]
    if _MEANING.match(block[0]):
        return list(_meanings(block))
    return [_escaped(line) for line in _as_list(block)]


def _as_list(block: list[str]) -> list[str]:
    """A list needs an empty line before its first point, and no indentation without one."""
    lines: list[str] = []
    for position, line in enumerate(block):
        is_point = line.startswith("- ")
        if is_point and position and not lines[-1].startswith(("- ", "  ")):
            lines.append("")
        lines.append(
            line if is_point or (lines and lines[-1].startswith(("- ", "  "))) else line.strip()
        )
    return lines


def _meanings(block: list[str]) -> Iterator[str]:
    """Lines of `name : meaning`, with the indented lines that go on, as a list of definitions."""
    names, text = "", ""
    for line in (part for whole in block for part in _NEXT_MEANING.split(whole)):
        found = None if line.startswith(" ") else _MEANING.match(line)
        if found is None:
            text += " " + line.strip()
            continue
        if names:
            yield from _meaning(names, text)
        names, text = found["names"], found["text"] or ""
    yield from _meaning(names, text)


def _meaning(names: str, text: str) -> list[str]:
    text = re.sub(" {2,}", ", ", text)  # columns of the source, such as "int (N,)    values"
    return [", ".join(f"``{name}``" for name in names.split(", ")), f"    {_escaped(text)}"]


def _escaped(text: str) -> str:
    """Text in which only `code` means anything."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a single backtick somewhere
        return _MARKUP.sub(r"\\\1", text.replace("`", "'"))
    return "".join(
        f"``{part}``" if position % 2 else _MARKUP.sub(r"\\\1", part)
        for position, part in enumerate(parts)
    )


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def rewrite(
    app: Sphinx, what: str, name: str, subject: object, options: Any, lines: list[str]
) -> None:
    """Called by autodoc for every docstring; changes its lines in place."""
    lines[:] = as_markup(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True}
