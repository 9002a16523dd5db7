"""Blocks of the README that benchmarks write."""

from __future__ import annotations

from benchmarks.jobs import ROOT


def replace_block(name: str, text: str) -> None:
    """Put text between the two comments of the README that bear a name."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(f"<!-- {name}:begin -->")
    after = rest.split(f"<!-- {name}:end -->")[1]
    block = f"<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->"
    readme.write_text(before + block + after, encoding="utf-8")
