"""Factorization and k-means at once: vectors are trained to be where they will be put.

k-means after training moves every vector to its centroid, and the loss pays for it. Here the
distance to the centroids is part of the loss from early on, and weighs more and more, so that in
the end little is left to move.
"""

from __future__ import annotations

from celrec.baselines.pulled_to_clusters import PulledToClusters

_FIRST_PULL, _LAST_PULL = 0.012, 0.4


class JointKMeansEmbedding(PulledToClusters):
    """`torch.nn.Embedding`, full in training, drawn to centroids ever more, which serve in the end.

    num_rows : K in [1, 65536]   centroids
    seed : of k-means
    other arguments : as in `CompressedEmbedding`

    rows : the centroids (K, D)      packed : the ids of entities' centroids, in few bits

    Source: Yang, Fu and Sidiropoulos, "Learning from hidden traits: joint factor analysis and
    latent clustering", IEEE Transactions on Signal Processing 2017: least squares plus lambda times
    the k-means loss of the factors, minimised in turn over factors, centroids and assignments.
    Here the first term is the model's own loss, by gradient steps; lambda grows, evenly in its
    logarithm, to 0.4 of the loss's curvature; distances count by occurrence, as the loss does;
    vectors are not confined to unit length.

    >>> import torch
    >>> table = JointKMeansEmbedding(1000, 8, num_rows=16)
    >>> [round(table.pull_after(epoch, 9), 3) for epoch in (1, 5, 9)]
    [0.018, 0.084, 0.4]
    >>> table.finish()
    >>> table(torch.arange(1000)).unique(dim=0).shape, table.memory().total_bytes
    (torch.Size([16, 8]), 1012)
    """

    kind = "joint-k-means"
    source = "Yang et al., IEEE TSP 2017"

    def pull_after(self, epoch: int, num_epochs: int) -> float:
        return float(_FIRST_PULL * (_LAST_PULL / _FIRST_PULL) ** (epoch / num_epochs))
