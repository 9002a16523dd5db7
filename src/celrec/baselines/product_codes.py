"""Differentiable product quantization: codes that are learned with the model, from its first step.

A vector is cut into G parts, and every part is one of K codewords from that part's codebook. An
entity stores only which: G codes of log2 K bits, which spell K^G different vectors. While training,
every entity also has a query, a free vector as in a full table, whose parts choose the nearest
codewords. The model works with the codewords; the gradient at a codeword also moves the query, as
if the choice between them were not there ("straight-through"), until it is nearer to another one.
The queries are let go in the end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.packed_ids import pack_ids, packed_size
from celrec.core.codes import bits_for, take_bits
from celrec.errors import ArgumentError, check_count

_COMMITMENT = 0.05  # times the squared distance of queries to their codewords
_MOST_CODEWORDS = 256
_ENTITIES_PER_CODEWORD = 4  # at least; fewer teach a codeword too little
_ENTITIES_AT_A_TIME = 8192


class ProductCodesEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose vectors are put together from codewords, by learned codes.

    num_groups : G >= 1, a divisor of D: parts of a vector
    num_codewords : K >= 2 for each part
    other arguments : as in `CompressedEmbedding`

    Stored are the codes, ceil(log2 K) bits each, and the codebooks, K x D numbers.

    Source: Chen, Li and Sun, "Differentiable product quantization for end-to-end embedding
    compression", ICML 2020; DPQ-VQ, section 2.3. Departures, each for better results in our trials:
    codewords are trained by the gradient of the loss instead of by their distance to the queries;
    and the distance keeps the queries near with a small weight (0.05). With these it learned better
    than the paper's DPQ-VQ and than DPQ-SX, which also costs more time.

    >>> table = ProductCodesEmbedding(1000, 8, num_groups=4, num_codewords=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.finish()
    >>> table.memory().code_bytes, table.memory().table_bytes
    (2000, 512)
    """

    kind = "dpq"
    source = "Chen, Li and Sun, ICML 2020"
    codes = ("packed_codes",)
    training_only = ("queries",)

    packed_codes: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_groups: int,
        num_codewords: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_groups = check_count("num_groups", num_groups, at_least=1)
        self.num_codewords = check_count("num_codewords", num_codewords, at_least=2)
        if embedding_dim % num_groups:
            raise ArgumentError(
                f"num_groups is {num_groups}; wanted a divisor of the width {embedding_dim}"
            )
        part_width = embedding_dim // num_groups
        self.codewords = nn.Parameter(torch.empty(num_groups, num_codewords, part_width))
        self.queries = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        size = packed_size(num_embeddings * num_groups, bits_for(num_codewords))
        self.register_buffer("packed_codes", torch.zeros(size, dtype=torch.uint8))
        self._commitment: Tensor | float = 0.0
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        """As in `CompressedEmbedding`.

        A byte may go into more parts or into more codewords. In our trials G log2(K / 2) told best
        how well codes did: four parts of 4 codewords are worse than two of 16.
        """
        width, row_bytes = embedding_dim, 4 * embedding_dim
        most = max(2, min(_MOST_CODEWORDS, num_embeddings // _ENTITIES_PER_CODEWORD))
        found = []
        for num_groups in (G for G in range(1, width + 1) if width % G == 0):
            for bits in range(1, bits_for(most) + 1):
                left = num_bytes - packed_size(num_embeddings * num_groups, bits)
                num_codewords = min(left // row_bytes, 1 << bits, most)
                if num_codewords >= 2 and bits == bits_for(num_codewords):
                    found.append((num_groups, num_codewords))
        if not found:
            raise too_small(cls.kind, num_bytes, packed_size(num_embeddings, 1) + 2 * row_bytes)
        num_groups, num_codewords = max(
            found, key=lambda sizes: (sizes[0] * math.log2(sizes[1] / 2), sizes[0])
        )
        return {"num_groups": num_groups, "num_codewords": num_codewords}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.codewords, std=std, generator=generator)
        nn.init.normal_(self.queries, std=std, generator=generator)

    def look_up(self, ids: Tensor) -> Tensor:
        if self.is_finished:
            return self._put_together(self.codes_of(ids)).flatten(1)
        queries = self._queries_of(ids)
        codewords = self._put_together(self._nearest(ids))
        if torch.is_grad_enabled():
            distance = (queries - codewords.detach()).square().sum() / max(1, len(ids))
            self._commitment = _COMMITMENT * distance
        # The values are the codewords' own; the gradient goes to both.
        return (codewords + (queries - queries.detach())).flatten(1)

    def codes_of(self, ids: Tensor) -> Tensor:
        """The codes of entities, int64 (L, G) in [0, K), for ids int64 (L,)."""
        if not self.is_finished:
            return self._nearest(ids)
        groups = torch.arange(self.num_groups, device=ids.device)
        positions = ids.unsqueeze(1) * self.num_groups + groups
        return take_bits(self.packed_codes, positions, bits_for(self.num_codewords))

    def extra_loss(self) -> Tensor | float:
        loss, self._commitment = self._commitment, 0.0
        return loss

    def compress(self) -> None:
        ids = torch.arange(self.num_embeddings, device=self.queries.device)
        codes = torch.cat([self._nearest(some) for some in ids.split(_ENTITIES_AT_A_TIME)])
        packed = pack_ids(codes.flatten(), bits_for(self.num_codewords))
        self.packed_codes.copy_(packed)
        self._commitment = 0.0

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "num_groups": self.num_groups,
            "num_codewords": self.num_codewords,
        }

    def _queries_of(self, ids: Tensor) -> Tensor:
        """The parts of queries, (L, G, D / G)."""
        return self.queries.index_select(0, ids).view(len(ids), self.num_groups, -1)

    @torch.no_grad()
    def _nearest(self, ids: Tensor) -> Tensor:
        """The codewords nearest to the queries of entities, int64 (L, G)."""
        some, place_of = ids.unique(return_inverse=True)
        queries = self._queries_of(some).transpose(0, 1)  # (G, L, D / G)
        if self.num_groups == self.embedding_dim:  # parts of one number need no distances
            codes = _nearest_numbers(queries.squeeze(2), self.codewords.squeeze(2))
        else:
            half = self.codewords.square().sum(2).unsqueeze(1) / 2  # (G, 1, K)
            distances = torch.baddbmm(half, queries, self.codewords.transpose(1, 2), alpha=-1)
            codes = distances.argmin(2)
        return codes.T.index_select(0, place_of)

    def _put_together(self, codes: Tensor) -> Tensor:
        """The codewords (L, G, D / G) of codes (L, G)."""
        first = self.num_codewords * torch.arange(self.num_groups, device=codes.device)
        lines = self.codewords.flatten(0, 1).index_select(0, (codes + first).flatten())
        return lines.view(*codes.shape, self.codewords.shape[2])

    def _num_rows(self) -> int:
        return self.num_codewords


def _nearest_numbers(numbers: Tensor, codewords: Tensor) -> Tensor:
    """The codeword nearest to each number, int64 (G, L), for (G, L) and (G, K).

    >>> _nearest_numbers(torch.tensor([[0.2, 0.9]]), torch.tensor([[1.0, 0.0]])).tolist()
    [[1, 0]]
    """
    ordered, order = codewords.sort(dim=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    return order.gather(1, torch.searchsorted(middles, numbers.contiguous()))
