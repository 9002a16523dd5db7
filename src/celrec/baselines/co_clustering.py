"""Co-clustering before training: entities share a row if they go with the same others.

Users who meet the same items, and items that are met by the same users, are found in the graph of
interactions, once, before anything is learned. They share a row from the first step to the last, as
under a hash that looks at the data. It costs no training, but the loss has no say in who shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, Occurrences
from celrec.baselines.hashing import hashed, multiplier_of
from celrec.baselines.kmeans import k_means
from celrec.baselines.packed_ids import MOST_BITS, pack_ids, rows_within
from celrec.core.codes import bits_for, take_bits
from celrec.errors import MissingExtraError, check_count

_FEWEST_VECTORS = 8


class CoClusteredEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose entities share a row with those of the same community.

    num_rows : K in [1, 65536]   communities
    seed : of the clustering; until `see`, of the hash that decides instead
    other arguments : as in `CompressedEmbedding`

    weight : the rows (K, D)      packed : the ids of entities' rows, in few bits

    The graph has an edge for every occurrence whose label is above zero (a click, a purchase, a
    rating), and for every occurrence if none is. Edges are divided by the roots of both degrees,
    the leading singular vectors of that matrix place every entity near those it shares edges with,
    and k-means of the places makes the communities.

    Source: Wu et al., "GraphHash: graph clustering enables parameter efficiency in recommender
    systems", 2024, for the idea; they maximise modularity with the Louvain method, which cannot be
    told how many communities to make. So the clustering is the spectral one of Dhillon,
    "Co-clustering documents and words using bipartite spectral graph partitioning", KDD 2001, with
    degrees made larger by their mean (Qin and Rohe, "Regularized spectral clustering", NeurIPS
    2013) and singular vectors times their singular values. On MovieLens-1M that did better, at 16,
    64 and 256 rows, than Dhillon's own scaling and than communities of greatest modularity, found
    by moving users and items in turn, of which about ten were left whatever the budget.

    >>> table = CoClusteredEmbedding(4, 8, num_rows=2)
    >>> met = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]])
    >>> table.see(Occurrences(met[:, 0], met[:, 1], torch.ones(4), 4, 2))
    >>> rows = table.row_ids(torch.arange(4)).tolist()
    >>> rows[0] == rows[1], rows[2] == rows[3], rows[0] == rows[3]
    (True, True, False)
    """

    kind = "co-clustering"
    source = "Wu et al., 2024 (GraphHash)"
    codes = ("packed",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1, at_most=1 << MOST_BITS)
        self.bits = bits_for(self.num_rows)
        self.weight = nn.Parameter(torch.empty(self.num_rows, self.embedding_dim))
        everyone = torch.arange(self.num_embeddings)
        self.packed: Tensor
        self.register_buffer(
            "packed", pack_ids(hashed(everyone, self.num_rows, multiplier_of(seed)), self.bits)
        )
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        num_rows = rows_within(
            cls.kind, num_embeddings, 4 * embedding_dim, num_bytes, most=num_embeddings
        )
        return {"num_rows": num_rows}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=std, generator=generator)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The row of each entity, int64 in [0, num_rows), for int64 (L,)."""
        return take_bits(self.packed, ids, self.bits)

    def look_up(self, ids: Tensor) -> Tensor:
        return self.weight.index_select(0, self.row_ids(ids))

    @torch.no_grad()
    def see(self, occurrences: Occurrences) -> None:
        width = max(_FEWEST_VECTORS, 1 + self.bits)  # the logarithm of K, as Dhillon has it
        places = _places(occurrences, width, self.seed)
        _, clusters = k_means(places, self.num_rows, self.seed)
        self.packed.copy_(pack_ids(clusters, self.bits))

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows}


def _places(occurrences: Occurrences, width: int, seed: int) -> Tensor:
    """Where entities stand in the graph, float (N, at most `width`): near each other if alike."""
    try:
        from scipy.sparse import csr_array, diags_array
        from sklearn.utils.extmath import randomized_svd
    except ImportError as error:
        raise MissingExtraError(
            "co-clustering needs scikit-learn, which is not installed: pip install celrec[train]"
        ) from error

    label = occurrences.label.cpu().numpy()
    is_edge = label > 0 if (label > 0).any() else np.ones(len(label), dtype=bool)
    entity = occurrences.entity.cpu().numpy()[is_edge]
    other = occurrences.other.cpu().numpy()[is_edge]
    shape = (occurrences.num_entities, occurrences.num_others)
    graph = csr_array((np.ones(len(entity)), (entity, other)), shape=shape)
    scales = [
        diags_array((degrees + max(degrees.mean(), 1e-9)) ** -0.5)
        for degrees in (graph.sum(axis=1), graph.sum(axis=0))
    ]
    vectors, values, _ = randomized_svd(
        scales[0] @ graph @ scales[1], min(width, *shape), random_state=seed % (1 << 32)
    )
    return torch.from_numpy(vectors * values).float()
