"""Bytes are counted exactly, and only where they serve."""

from __future__ import annotations

import torch
from torch import nn

from celrec import ClusteredEmbedding, ClusteredEmbeddingBag, memory_report


def test_tables_codes_and_training_bytes_are_counted_apart() -> None:
    torch.manual_seed(0)
    users = ClusteredEmbedding.from_pretrained(
        torch.randn(3, 4), torch.arange(1000) % 3, max_clusters=300, freeze=False
    )
    model = nn.ModuleDict({"users": users, "goods": nn.Embedding(50, 4), "other": nn.Linear(4, 1)})
    optimizer = torch.optim.Adam(model.parameters())
    model["users"](torch.arange(5)).sum().backward()
    optimizer.step()
    report = memory_report(model, optimizer)
    by_name = {table.name: table for table in report.tables}
    assert set(by_name) == {"users", "goods"}
    ours = by_name["users"]
    assert (ours.table_bytes, ours.code_bytes, ours.personal_bytes) == (3 * 4 * 4, 2 * 1000, 0)
    assert ours.full_table_bytes == 1000 * 4 * 4
    assert ours.sleeping_bytes == 297 * 4 * 4
    assert ours.optimizer_bytes == 2 * 300 * 4 * 4 + 4
    assert (by_name["goods"].kind, by_name["goods"].total_bytes) == ("full", 800)
    assert report.total_bytes == 48 + 2000 + 800
    assert report.times_smaller == (16000 + 800) / 2848
    assert report.as_dict()["tables"][0]["total_bytes"] == 2048
    assert "times smaller" in str(report)


def test_half_precision_halves_rows_but_not_codes() -> None:
    table = ClusteredEmbeddingBag(10, 4, max_clusters=2, dtype=torch.float16)
    assert (table.memory().table_bytes, table.memory().code_bytes) == (8, 10)


def test_a_table_shared_by_two_parents_counts_once() -> None:
    table = nn.Embedding(10, 4)
    assert len(memory_report(nn.ModuleList([table, table])).tables) == 1
