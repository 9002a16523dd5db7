"""The sentences are true whichever way the figures fall."""

from __future__ import annotations

import dataclasses

import pytest

from celrec.report.read import ResultRow
from celrec.report.words import (
    bytes_title,
    headline,
    leading_row,
    rival_sentence,
    table_note,
    unbroken,
)

CLUSTERED = ResultRow(
    embedding="clustered",
    rows="32",
    variant="",
    mean=0.825,
    std=0.002,
    rmse=None,
    coldest_users=0.7,
    coldest_items=None,
    table_bytes=8192,
    total_bytes=10_817,
    times_smaller=31.06,
    seconds=9.0,
    num_seeds=3,
)
FULL = dataclasses.replace(
    CLUSTERED,
    embedding="full",
    rows="",
    mean=0.841,
    std=0.001,
    table_bytes=336_000,
    total_bytes=336_000,
    times_smaller=1.0,
)
HASHED = dataclasses.replace(CLUSTERED, embedding="hashed", mean=0.7, std=None, total_bytes=10_900)


def with_mean(row: ResultRow, mean: float, **changes: float | None) -> ResultRow:
    return dataclasses.replace(row, mean=mean, **changes)


@pytest.mark.parametrize(
    ("task", "row", "full", "ending"),
    [
        ("binary", CLUSTERED, FULL, "but 0.016 worse than their 0.841 ± 0.001."),
        ("binary", with_mean(CLUSTERED, 0.85), FULL, "and 0.009 better than their 0.841 ± 0.001."),
        ("binary", with_mean(CLUSTERED, 0.840), FULL, "and level with their 0.841 ± 0.001."),
        ("rating", CLUSTERED, FULL, "and 0.016 better than their 0.841 ± 0.001."),
        ("rating", with_mean(CLUSTERED, 0.85), FULL, "but 0.009 worse than their 0.841 ± 0.001."),
        (
            "binary",
            with_mean(CLUSTERED, 0.83, std=None),
            with_mean(FULL, 0.829, std=None),
            "and 0.001 better than their 0.829.",
        ),
    ],
)
def test_the_headline_says_better_or_worse(
    task: str, row: ResultRow, full: ResultRow, ending: str
) -> None:
    sentence = headline([full, row], [], task)
    name = "AUC" if task == "binary" else "MSE"
    assert sentence.startswith(f"Clustered embeddings with 32 rows per table reach {name} ")
    assert "in 10.8 kB: 31 times smaller than full tables, " in sentence
    assert sentence.endswith(ending)


def test_the_headline_says_larger() -> None:
    larger = dataclasses.replace(CLUSTERED, times_smaller=0.5)
    assert "2.0 times larger than full tables, and 0.016 worse" in headline(
        [larger, FULL], [], "binary"
    )


def test_the_headline_is_about_the_smallest_table_that_is_level_with_the_best() -> None:
    larger = dataclasses.replace(CLUSTERED, rows="64", mean=0.827, total_bytes=19_009)
    smaller = dataclasses.replace(CLUSTERED, rows="8", mean=0.82, total_bytes=4_673)
    assert leading_row([larger, CLUSTERED, smaller, FULL], "binary") == CLUSTERED
    one_seed = dataclasses.replace(CLUSTERED, std=None)
    assert leading_row([one_seed, dataclasses.replace(larger, std=None)], "binary").rows == "64"


def test_the_headline_without_full_tables() -> None:
    assert headline([CLUSTERED, HASHED], [], "binary") == (
        "Clustered embeddings with 32 rows per table reach AUC 0.825 ± 0.002 in 10.8 kB, "
        "31 times smaller than full tables would be."
    )


def test_a_rival_is_another_embedding_of_about_as_many_bytes() -> None:
    assert rival_sentence([CLUSTERED, HASHED, FULL], "binary") == (
        "Hashed tables of about as many bytes reach 0.700."
    )
    too_large = dataclasses.replace(HASHED, total_bytes=20_000)
    assert rival_sentence([CLUSTERED, too_large, FULL], "binary") == ""
    assert rival_sentence([], "binary") == ""


def test_the_smallest_of_ours_is_named_beside_the_best() -> None:
    small = dataclasses.replace(
        CLUSTERED, rows="8", mean=0.8, total_bytes=4_673, times_smaller=71.9
    )
    hashed = dataclasses.replace(HASHED, mean=0.5, total_bytes=4_864)
    blended = dataclasses.replace(CLUSTERED, embedding="blended", mean=0.84)
    rows = [small, CLUSTERED, hashed, HASHED, FULL, blended]
    assert leading_row(rows, "binary") == blended
    assert rival_sentence(rows, "binary") == (
        "Hashed tables of about as many bytes reach 0.700. At the other end, clustered embeddings "
        "with 8 rows per table reach 0.800 ± 0.002 in 4.7 kB, 72 times smaller than full tables. "
        "Hashed tables of about as many bytes reach 0.500."
    )


@pytest.mark.parametrize(
    ("task", "mean", "title"),
    [
        ("binary", 0.9, "Fewer bytes and a better AUC"),
        ("binary", 0.8335, "Fewer bytes, nearly the same AUC"),
        ("binary", 0.8, "AUC against bytes"),
        ("rating", 0.8, "Fewer bytes and a better MSE"),
        ("rating", 0.9, "MSE against bytes"),
    ],
)
def test_the_title_praises_only_what_the_figures_say(task: str, mean: float, title: str) -> None:
    assert bytes_title([with_mean(CLUSTERED, mean), FULL], task) == title


def test_a_large_table_is_not_praised() -> None:
    large = dataclasses.replace(CLUSTERED, times_smaller=1.1, mean=0.9)
    assert bytes_title([large, FULL], "binary") == "AUC against bytes"


def test_the_note_says_what_the_spread_is() -> None:
    assert "standard deviation over 3 seeds" in table_note([CLUSTERED, FULL], "binary")
    other = dataclasses.replace(FULL, num_seeds=2)
    assert "standard deviation over seeds" in table_note([CLUSTERED, other], "binary")
    assert "standard deviation" not in table_note([HASHED], "binary")


def test_figures_do_not_break_over_lines() -> None:
    assert unbroken("reach 0.825 ± 0.002 in 10.8 kB, or 3 more") == (
        "reach 0.825\xa0±\xa00.002 in 10.8\xa0kB, or 3 more"
    )
