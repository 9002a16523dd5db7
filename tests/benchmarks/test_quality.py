"""The benchmark at equal bytes: the data it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import planted
from benchmarks.quality.headlines import Headlines, unfinished
from benchmarks.quality.write import PAGES, SUITES, constructed
from celrec.experiments.build import load_interactions
from celrec.experiments.config import RunConfig
from celrec.experiments.suite import SuiteConfig


@pytest.mark.parametrize("file", sorted(PAGES.glob("*.json")), ids=lambda file: file.stem)
def test_every_page_shows_the_methods_it_compares(file: Path) -> None:
    found = Headlines.read(file)
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    for line in found.lines:
        assert f"\n| {line.comparison.method} | " in page
    if found.not_run:
        assert f"\nNot run yet: {', '.join(found.not_run)}." in page
        assert f"{found.title} (" in unfinished([found])
    else:
        assert unfinished([found]) == ""


@pytest.mark.parametrize("name", planted.SIZES)
def test_every_planted_size_has_a_suite(name: str) -> None:
    suite = SuiteConfig.read(SUITES / f"planted_{name}.toml")
    assert suite.common["data"]["source"] == planted.file_of(name)


def test_a_planted_suite_reads_what_was_made_and_says_so(tmp_path: Path) -> None:
    data = planted.make("small")
    planted.write(tmp_path / planted.file_of("small"), data)
    suite = SuiteConfig.read(SUITES / "planted_small.toml").with_data_in(tmp_path)
    found = load_interactions(RunConfig.from_values(suite.common))
    # A file's ids are numbered as they come.
    assert found.users.decode(found.user) == data.interactions.user.tolist()
    assert found.items.decode(found.item) == data.interactions.item.tolist()
    assert found.label.tolist() == data.interactions.label.tolist()
    assert f"own AUC is {planted.best_auc(data):.4f}" in constructed(suite)[0]
