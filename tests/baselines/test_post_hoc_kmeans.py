"""KMeansEmbedding trains a full table and serves centroids."""

from __future__ import annotations

import pytest
import torch

from celrec.baselines.post_hoc_kmeans import KMeansEmbedding


def test_it_is_a_full_table_until_it_is_finished() -> None:
    table = KMeansEmbedding(50, 4, num_rows=3)
    ids = torch.tensor([[0, 49], [7, 7]])
    assert torch.equal(table(ids), table.weight[ids])
    assert table.memory().sleeping_bytes == 50 * 4 * 4
    table.finish()
    assert table.memory().sleeping_bytes == 0


def test_vectors_become_the_means_of_their_clusters() -> None:
    table = KMeansEmbedding(60, 4, num_rows=5)
    weight = table.weight.detach().clone()
    table.finish()
    ids = torch.arange(60)
    clusters = table.row_ids(ids)
    for cluster in clusters.unique():
        mean = weight[clusters == cluster].mean(0)
        torch.testing.assert_close(table.rows[cluster], mean, rtol=1e-4, atol=1e-4)
    assert torch.equal(table(ids), table.rows[clusters])


def test_entities_that_learned_one_of_a_few_vectors_keep_it() -> None:
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    table = KMeansEmbedding(100, 8, num_rows=4)
    table.weight.data.copy_(vectors[torch.arange(100) % 4])
    table.finish()
    torch.testing.assert_close(table(torch.arange(100)), vectors[torch.arange(100) % 4])


@pytest.mark.parametrize(
    ("num_bytes", "num_rows"),
    [
        (8 * 128, 2),  # 755 bytes of one bit, two rows
        (32 * 128, 8),  # 2266 bytes of three bits; with four bits there is room for 8, too
        (64 * 128, 32),
        (1024 * 128, 965),
    ],
)
def test_ids_take_no_more_bits_than_rows_need(num_bytes: int, num_rows: int) -> None:
    table = KMeansEmbedding.within(6040, 32, num_bytes)
    assert table.num_rows == num_rows
    assert table.memory().code_bytes == len(table.packed)
    table.finish()
    assert table.memory().total_bytes <= num_bytes
