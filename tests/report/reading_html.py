"""A page, read back: its elements, text and charts. Open elements must be closed in order."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "img", "link", "input", "hr", "source"}


class Page(HTMLParser):
    """
    elements : (tag, attributes), in order
    scripts : (type, content)
    tables : by id, rows of the texts of their cells
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.texts: list[tuple[str, str]] = []  # (tag, text)
        self.rows: list[list[str]] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif inside == "style":
            self.style += data
        else:
            self.texts.append((inside, data))
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        """All that is shown, beside the charts."""
        shown = " ".join(text for tag, text in self.texts if tag != "title")
        return " ".join(shown.replace("\N{NO-BREAK SPACE}", " ").split())

    @property
    def charts(self) -> dict[str, Any]:
        """Traces and layouts by the name of the chart."""
        data = [text for kind, text in self.scripts if kind == "application/json"]
        return json.loads(data[0])["drawn"] if data else {}

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.elements if tag == "section"]

    @property
    def policy(self) -> str:
        """The content security policy."""
        (policy,) = (
            attributes["content"]
            for tag, attributes in self.elements
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        )
        return str(policy)

    def hashes(self) -> list[str]:
        """Of the scripts that would run, as a policy names them."""
        return [
            "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
            for kind, text in self.scripts
            if kind is None
        ]


def texts_of(chart: dict[str, Any]) -> str:
    """Every text that a chart can show."""
    return json.dumps(chart, ensure_ascii=False)
