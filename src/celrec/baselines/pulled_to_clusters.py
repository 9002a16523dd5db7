"""What baselines share that pull the vectors of a full table towards clusters while they train."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from celrec.baselines.contract import Occurrences
from celrec.baselines.kmeans import k_means
from celrec.baselines.packed_ids import pack_ids
from celrec.baselines.post_hoc_kmeans import KMeansEmbedding

_PASSES_AFRESH, _PASSES_ON = 10, 3
_OF_CROSS_ENTROPY, _OF_SQUARED_ERROR = 0.25, 2.0


class PulledToClusters(KMeansEmbedding):
    """A full table in training whose vectors are drawn to the centroids that will serve.

    The loss has one more term: `pull` times the squared distance between the vectors that a batch
    looks up and their centroids, its mean over the batch. After every epoch entities are assigned
    anew and centroids become means, which lowers the same sum: an entity counts as often as it
    occurs. In the first third of the epochs clusters are made afresh, for vectors still find their
    places; from then on k-means goes on from where it was.

    What a distance must weigh to be felt depends on the loss, and is given relative to its
    curvature: 1/4 at most for cross-entropy, 2 for squared error. Labels tell which: cross-entropy
    is for 0 and 1 alone.

    In evaluation mode the centroids are served, so that validation sees what will be there in the
    end.

    A baseline fills in `pull_after`, and `placed` if centroids are more than means.

    rows : no lines until the end of the first epoch
    counts : how often entities occur, at least 1, float (N,)
    curvature, pull : float (1,); no pull before the end of the first epoch
    """

    training_only = ("weight", "counts", "curvature", "pull")
    flexible = ("rows",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, num_rows, padding_idx, seed=seed)
        self._resize("rows", 0)
        self.counts: Tensor
        self.curvature: Tensor
        self.pull: Tensor
        self.register_buffer("counts", torch.ones(self.num_embeddings))
        self.register_buffer("curvature", torch.full((1,), _OF_CROSS_ENTROPY))
        self.register_buffer("pull", torch.zeros(1))
        self._looked_up: Tensor | None = None

    @abstractmethod
    def pull_after(self, epoch: int, num_epochs: int) -> float:
        """The weight of squared distances after an epoch, counted from 1, relative to curvature."""

    def placed(self, means: Tensor, sizes: Tensor) -> Tensor:
        """The centroids (K, D) of clusters with these means (K, D) and summed counts (K,)."""
        return means

    def see(self, occurrences: Occurrences) -> None:
        self.counts.copy_(occurrences.counts().clamp_min(1))
        label = occurrences.label
        is_binary = bool(((label == 0) | (label == 1)).all())
        self.curvature.fill_(_OF_CROSS_ENTROPY if is_binary else _OF_SQUARED_ERROR)

    def look_up(self, ids: Tensor) -> Tensor:
        if self.is_finished or (not self.training and self._has_clusters):
            return self.served(ids)
        self._looked_up = ids
        return self.weight.index_select(0, ids)

    def extra_loss(self) -> Tensor | float:
        ids = self._looked_up
        if ids is None or not self._has_clusters or self.is_finished:
            return 0.0
        distances = (self.weight.index_select(0, ids) - self.served(ids)).square().sum(1)
        if self.padding_idx is not None:
            distances = distances.masked_fill(ids == self.padding_idx, 0.0)
        return self.pull.squeeze() * distances.sum() / max(1, len(ids))

    def after_epoch(self, epoch: int, num_epochs: int) -> bool:
        self._cluster(afresh=3 * epoch <= num_epochs)
        self.pull.copy_(self.pull_after(epoch, num_epochs) * self.curvature)
        return False

    def compress(self) -> None:
        self._cluster(afresh=False)

    @property
    def _has_clusters(self) -> bool:
        return self.rows.shape[0] > 0

    @torch.no_grad()
    def _cluster(self, *, afresh: bool) -> None:
        """Assign entities to their nearest centroids and place these among them, in turn."""
        goes_on = self._has_clusters and not afresh
        means, clusters = k_means(
            self.weight,
            self.num_rows,
            self.seed,
            weights=self.counts,
            start=self.rows if goes_on else None,
            num_passes=_PASSES_ON if goes_on else _PASSES_AFRESH,
        )
        sizes = torch.bincount(clusters, self.counts, minlength=self.num_rows).to(means)
        self._resize("rows", self.num_rows)
        self.rows.copy_(self.placed(means, sizes))
        self.packed.copy_(pack_ids(clusters, self.bits))
