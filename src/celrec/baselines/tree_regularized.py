"""A tree of entities: vectors are drawn to their parents, and parents to their own.

The tree is not given but learned with the vectors: who belongs to which parent changes after every
epoch, and parents move to where their children are. Then the parents alone serve: every entity
keeps the id of its own.
"""

from __future__ import annotations

from torch import Tensor

from celrec.baselines.kmeans import k_means
from celrec.baselines.pulled_to_clusters import PulledToClusters

_PULL = 0.04


class TreeRegularizedEmbedding(PulledToClusters):
    """`torch.nn.Embedding`, full in training, drawn to parents of a tree, which serve in the end.

    num_rows : K in [1, 65536]   parents of the entities; these have about sqrt(K) parents
    seed : of the tree's beginning
    other arguments : as in `CompressedEmbedding`

    rows : the parents (K, D)      packed : the ids of entities' parents, in few bits

    Source: Almutairi et al., "eTREE: learning tree-structured embeddings", AAAI 2021: least squares
    plus a multiple of |child - parent|^2, summed over all levels of the tree, minimised in turn
    over vectors, parents and the tree. Here the first term is the model's own loss, by gradient
    steps; nothing is confined to be nonnegative; the tree has three levels; entities count by
    occurrence, as in the loss, and a parent as much as an entity does on average. Theirs serves
    the vectors themselves; to save memory, the parents serve here.

    >>> import torch
    >>> table = TreeRegularizedEmbedding(1000, 8, num_rows=16)
    >>> table.finish()
    >>> table(torch.arange(1000)).unique(dim=0).shape, table.memory().total_bytes
    (torch.Size([16, 8]), 1012)
    """

    kind = "etree"
    source = "Almutairi et al., AAAI 2021"

    def pull_after(self, epoch: int, num_epochs: int) -> float:
        return _PULL

    def placed(self, means: Tensor, sizes: Tensor) -> Tensor:
        """Between the children's mean and the parent's own parent: where both are nearest.

        The gradient of sizes * |row - mean|^2 + one * |row - grandparent|^2 is zero there.
        """
        grandparents, of = k_means(means, round(self.num_rows**0.5), self.seed)
        one = float(self.counts.mean())
        sizes = sizes.unsqueeze(1)
        return (sizes * means + one * grandparents[of]) / (sizes + one)
