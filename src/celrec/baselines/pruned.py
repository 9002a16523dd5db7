"""PEP: a full table of which only the numbers that matter are kept.

A table of the usual size is trained, and its numbers are pushed towards zero by thresholds that are
learned with them. After a quarter of the epochs the smallest numbers begin to be taken out, more
from epoch to epoch, until what is left fits into the bytes that are allowed; the last quarter of
the epochs trains the survivors alone. So an entity keeps as many numbers as its data call for, from
none to all. The memory is saved when the table serves, not while it trains.

What is stored in the end, all of it counted:

- `occupied`: the set of entities that keep any number (packed_bits.py)
- `columns`: for each of those, D bits that say which numbers it keeps, with counts that say where
  they begin
- `values`: all these numbers in a row, as float16
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.packed_bits import (
    bits_length,
    is_one,
    ones_before,
    pack_bits,
    pack_set,
    places_in_set,
)
from celrec.errors import check_count

_BEGIN, _END = 0.25, 0.75  # of the epochs: when numbers begin to go, and when no more do
_VALUE_BYTES = 2
_FIRST_THRESHOLD = 0.01  # of the deviation of numbers


class PrunedEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` that stores the largest numbers of a trained table, and no others.

    num_bytes : >= 1    what the finished table may take
    other arguments : as in `CompressedEmbedding`

    In training a vector is sign(v) max(|v| - sigmoid(s), 0), times a mask of what is left, with one
    s for each column (the paper's "dimension-wise" thresholds: in our trials these did as well as
    one for each number, which take twice the memory). In evaluation mode the table is pruned to
    `num_bytes` at once, so that a validation figure is one of what would serve.

    Source: Liu et al., "Learnable embedding sizes for recommender systems", ICLR 2021, equations 4
    to 8. Departures: the thresholds learn which numbers are small, and the byte budget decides how
    many of these go, where the paper waits until enough have gone; the survivors go on from where
    they are, where the paper starts them again; the index of what is kept is counted, and numbers
    are stored as float16.

    >>> table = PrunedEmbedding(1000, 8, num_bytes=4000)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.finish()
    >>> 3800 < table.memory().total_bytes <= 4000
    True
    """

    kind = "pep"
    source = "Liu et al., ICLR 2021"
    codes = ("occupied", "columns")
    training_only = ("numbers", "threshold", "is_kept")
    flexible = ("occupied", "columns", "values")

    is_kept: Tensor
    occupied: Tensor
    columns: Tensor
    values: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_bytes: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_bytes = check_count("num_bytes", num_bytes, at_least=1)
        shape = (num_embeddings, embedding_dim)
        self.numbers = nn.Parameter(torch.empty(shape))
        self.threshold = nn.Parameter(torch.empty(1, embedding_dim))
        self.register_buffer("is_kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("occupied", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        # Until the table is finished, zeros keep the place of what it will store in the count.
        self.register_buffer("values", torch.zeros(num_bytes // _VALUE_BYTES, dtype=torch.int16))
        self._would_serve: Tensor | None = None
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        one = torch.ones(1, dtype=torch.int64)
        least = int(_stored_bytes(one, one, num_embeddings, embedding_dim))
        if num_bytes < least:
            raise too_small(cls.kind, num_bytes, least)
        return {"num_bytes": num_bytes}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.numbers, std=std, generator=generator)
        first = min(_FIRST_THRESHOLD * std, 0.5)
        nn.init.constant_(self.threshold, math.log(first / (1 - first)))

    def look_up(self, ids: Tensor) -> Tensor:
        if self.is_finished:
            return self._stored(ids)
        vectors = _thresholded(self.numbers.index_select(0, ids), self.threshold)
        is_kept = self.is_kept if self.training else self._kept_if_finished()
        return vectors * is_kept.index_select(0, ids)

    def after_epoch(self, epoch: int, num_epochs: int) -> bool:
        """Take out more numbers, the fewer the nearer the end.

        Source: Zhu and Gupta, "To prune, or not to prune", 2017, for the cubic course.
        """
        first, last = int(_BEGIN * num_epochs), int(_END * num_epochs)
        if first <= epoch <= last:
            share_done = (epoch - first + 1) / (last - first + 1)
            dense = _VALUE_BYTES * self.num_embeddings * self.embedding_dim
            excess = max(0, dense - self.num_bytes)
            self.is_kept.copy_(self._largest(self.num_bytes + int(excess * (1 - share_done) ** 3)))
        return False

    def compress(self) -> None:
        is_kept = self._largest(self.num_bytes)
        numbers = _thresholded(self.numbers, self.threshold)[is_kept]
        entities = is_kept.any(1).nonzero().flatten()
        self.occupied = pack_set(entities, self.num_embeddings)
        self.columns = pack_bits(is_kept[entities].flatten())
        self.values = numbers.to(torch.float16).view(torch.int16)

    def train(self, mode: bool = True) -> Self:
        self._would_serve = None
        return super().train(mode)

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_bytes": self.num_bytes}

    def _stored(self, ids: Tensor) -> Tensor:
        """The vectors (L, D) of entities, from the arrays that serve."""
        width = self.embedding_dim
        vectors = self.numbers.new_zeros(len(ids), width)
        places = places_in_set(self.occupied, ids, self.num_embeddings)
        known = (places >= 0).nonzero().flatten()  # (M,)
        starts = places[known] * width
        is_kept = is_one(self.columns, starts.unsqueeze(1) + torch.arange(width, device=ids.device))
        first = ones_before(self.columns, starts).unsqueeze(1)
        value_of = (first + is_kept.cumsum(1) - 1)[is_kept]
        values = self.values[value_of].view(torch.float16).to(vectors.dtype)
        vectors[known] = vectors.new_zeros(is_kept.shape).masked_scatter(is_kept, values)
        return vectors

    @torch.no_grad()
    def _largest(self, num_bytes: int) -> Tensor:
        """Which numbers to keep, bool (N, D): the largest of those left that fit into bytes."""
        num_entities, width = self.numbers.shape
        sizes = _thresholded(self.numbers, self.threshold).abs() * self.is_kept
        largest = sizes.argmax(1)
        order = sizes.flatten().argsort(descending=True, stable=True)
        is_first = largest[order // width] == order % width  # of its entity
        num_values = torch.arange(1, len(order) + 1, device=order.device)
        num_bytes_of = _stored_bytes(is_first.cumsum(0), num_values, num_entities, width)
        fits = (num_bytes_of <= num_bytes) & (sizes.flatten()[order] > 0)
        is_kept = torch.zeros_like(self.is_kept).flatten()
        is_kept[order[: int(fits.sum())]] = True
        return is_kept.view(num_entities, width)

    def _kept_if_finished(self) -> Tensor:
        if self._would_serve is None:
            self._would_serve = self._largest(self.num_bytes)
        return self._would_serve

    def _num_rows(self) -> int:
        return 0

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._would_serve = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _thresholded(numbers: Tensor, threshold: Tensor) -> Tensor:
    """Numbers (L, D), nearer to zero by sigmoid(threshold), (1, D), and not beyond it."""
    return numbers.sign() * (numbers.abs() - threshold.sigmoid()).relu()


def _stored_bytes(
    num_occupied: Tensor, num_values: Tensor, num_entities: int, width: int
) -> Tensor:
    """What so many numbers of so many entities take, int64 in the shape of the counts."""
    set_ints = num_occupied.clamp_max(bits_length(num_entities))
    column_ints = bits_length(1) * -(-num_occupied * width // 256)
    return 4 * (set_ints + column_ints) + _VALUE_BYTES * num_values
