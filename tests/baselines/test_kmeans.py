"""k-means finds planted clusters, and centroids are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from celrec.baselines import kmeans
from celrec.baselines.kmeans import k_means, nearest


def planted(num_clusters: int, members: int, width: int = 4) -> tuple[Tensor, Tensor]:
    """Vectors (n, width) close around far corners, and the corner of each, int64 (n,)."""
    generator = torch.Generator().manual_seed(0)
    corners = 20 * torch.randn(num_clusters, width, generator=generator)
    of = torch.arange(num_clusters).repeat(members)
    return corners[of] + 0.01 * torch.randn(len(of), width, generator=generator), of


def test_planted_clusters_are_found() -> None:
    vectors, of = planted(num_clusters=5, members=40)
    rows, clusters = k_means(vectors, 5, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(of, clusters, strict=True)}) == 5
    means = torch.stack([vectors[clusters == k].mean(0) for k in range(5)])
    torch.testing.assert_close(rows, means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [1 << 16, 1 << 22])
def test_many_clusters_are_found_in_two_steps_as_in_one(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(kmeans, "_MANY_DISTANCES", limit)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 4, generator=generator)
    rows, clusters = k_means(vectors, 100, seed=0)
    assert torch.bincount(clusters, minlength=100).min() > 0
    error = (rows[clusters] - vectors).square().mean()
    assert error < 0.17, "a hundred clusters of four normal numbers leave about 0.15"


def test_a_sample_is_enough_for_the_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_FEW_DISTANCES", 1)
    vectors, of = planted(num_clusters=3, members=2000)
    _, clusters = k_means(vectors, 3, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(of, clusters, strict=True)}) == 3


def test_more_clusters_than_vectors_leave_some_empty() -> None:
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows, clusters = k_means(vectors, 4, seed=0)
    assert rows.shape == (4, 2)
    torch.testing.assert_close(rows[clusters], vectors)


def test_equal_vectors_are_one_cluster_and_no_warning() -> None:
    rows, clusters = k_means(torch.ones(10, 2), 3, seed=0)
    assert torch.equal(rows[clusters], torch.ones(10, 2))


def test_a_heavy_vector_draws_the_centroid() -> None:
    vectors = torch.tensor([[0.0], [4.0]])
    rows, _ = k_means(vectors, 1, seed=0, weights=torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(rows, torch.tensor([[1.0]]))


def test_going_on_from_the_end_changes_nothing() -> None:
    vectors, _ = planted(num_clusters=4, members=30)
    rows, clusters = k_means(vectors, 4, seed=0)
    again, same = k_means(vectors, 4, seed=9, start=rows, num_passes=1)
    torch.testing.assert_close(again, rows, rtol=1e-4, atol=1e-4)
    assert torch.equal(same, clusters)


def test_nearest_is_the_least_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, rows = (torch.randn(n, 3, generator=generator) for n in (50, 7))
    assert torch.equal(nearest(vectors, rows), torch.cdist(vectors, rows).argmin(1))
