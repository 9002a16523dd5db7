"""What every baseline is: an `nn.Embedding` of another make, whose size is given in bytes.

A baseline fills in `look_up`, `draw`, `sizes_for` and `options`; the rest of the contract of
`torch.nn.Embedding` (ids of any shape, padding, errors), byte accounting and checkpoints are here.

Its arrays are parameters and buffers, and their bytes are what it stores. They count as table
bytes unless the class lists their name: under `codes` (one line for every entity, of integers),
`personal` (one line for every entity that has one, of numbers) or `training_only`. So nothing that
a prediction needs can stay out of the count: only what `state_dict` holds survives.

Some methods need more than a look-up. Training calls, in this order: `see` with the training data,
`extra_loss` at every step, `after_epoch`, and at last `finish`, which gives the table the form that
serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from celrec.core.memory import TableMemory
from celrec.errors import ArgumentError, DtypeError, EntityIdError, check_count


@dataclass(frozen=True)
class Occurrences:
    """The training data as one table sees them: its entities, and what each was met with.

    entity : int64 (n,) in [0, N)       other : int64 (n,) in [0, num_others)
    label : float32 (n,)
    num_entities, num_others : N, and the size of the other side
    """

    entity: Tensor
    other: Tensor
    label: Tensor
    num_entities: int
    num_others: int

    def counts(self) -> Tensor:
        """How often each entity occurs, int64 (N,)."""
        return torch.bincount(self.entity, minlength=self.num_entities)


class CompressedEmbedding(nn.Module, ABC):
    """`torch.nn.Embedding` that stores less than a vector for every entity.

    num_embeddings : N >= 1     number of entities
    embedding_dim : D >= 1      width of a vector
    padding_idx : as in `nn.Embedding`: this entity's vector is zero and gets no gradient
    seed : >= 0, of hashes and other choices that are not learned
    raises : ArgumentError; EntityIdError, DtypeError when looked up

    init_scale, start : of the vectors that training begins with: random ones times `init_scale`,
        and `start` added to the first number of all. The second is a constant, not learned
    """

    kind: ClassVar[str]
    """What `--embedding`, reports and results call it."""
    source: ClassVar[str]
    """The paper."""
    codes: ClassVar[tuple[str, ...]] = ()
    personal: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[tuple[str, ...]] = ()
    flexible: ClassVar[tuple[str, ...]] = ()
    """Arrays whose number of lines is found in training; a state dict decides about them."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_embeddings = check_count("num_embeddings", num_embeddings, at_least=1)
        self.embedding_dim = check_count("embedding_dim", embedding_dim, at_least=1)
        self.seed = check_count("seed", seed)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(
                    f"padding_idx is {padding_idx}; wanted an entity, in "
                    f"[{-num_embeddings}, {num_embeddings})"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.init_scale = 1.0
        self.start = 0.0

    # --- what a baseline fills in ------------------------------------------------------------

    @classmethod
    @abstractmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        """The constructor's own arguments that spend most of so many bytes.

        raises : ArgumentError if the method cannot be as small; the message says what it takes
        """

    @abstractmethod
    def look_up(self, ids: Tensor) -> Tensor:
        """The vectors (L, D) of entities, int64 (L,), which are in range."""

    @abstractmethod
    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw the parameters anew, so that the numbers of vectors have mean 0 and this deviation.

        What is not learned (hashes) follows `seed` and stays.
        """

    def options(self) -> dict[str, Any]:
        """The arguments of the constructor that make an equal table, ready for JSON."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
            "seed": self.seed,
        }

    # --- what some of them need in training --------------------------------------------------

    def see(self, occurrences: Occurrences) -> None:
        """Look at the training data once, before the first step; whatever is kept is a buffer."""

    def extra_loss(self) -> Tensor | float:
        """What is added to the mean loss of the last batch looked up."""
        return 0.0

    def after_epoch(self, epoch: int, num_epochs: int) -> bool:
        """Change what changes between epochs, counted from 1.

        returns : whether parameters were replaced; their optimizer state then starts anew
        """
        return False

    def compress(self) -> None:
        """Compute, after the last step, the arrays that serve from those that were trained."""

    # --- the same for all --------------------------------------------------------------------

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        num_bytes: int,
        *,
        padding_idx: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Make the table that spends most of so many bytes: total bytes, once it is finished.

        raises : ArgumentError if the method cannot be as small; the message says what it takes
        """
        sizes = cls.sizes_for(num_embeddings, embedding_dim, num_bytes)
        return cls(num_embeddings, embedding_dim, padding_idx=padding_idx, seed=seed, **sizes)

    def forward(self, input: Tensor) -> Tensor:
        """Look up vectors: ids int32 or int64 of any shape (*) give floats of shape (*, D)."""
        self._check(input)
        vectors = self.look_up(input.reshape(-1).long())
        if self.start:
            vectors = torch.cat([vectors[:, :1] + self.start, vectors[:, 1:]], 1)
        vectors = vectors.view(*input.shape, self.embedding_dim)
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)
        return vectors

    @torch.no_grad()
    def reset_parameters(self, std: float = 1.0, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that vectors have this standard deviation, times `init_scale`."""
        self.draw(std * self.init_scale, generator)

    @torch.no_grad()
    def finish(self) -> None:
        """Take the form that serves: compress, and let go of what was needed to train only."""
        self.compress()
        for name in self.training_only:
            self._resize(name, 0)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left that serves training only."""
        return all(not getattr(self, name).numel() for name in self.training_only)

    def memory(self) -> TableMemory:
        """The bytes of every array, as the class sorts them; the name is left empty."""
        found = dict.fromkeys(("table", "codes", "personal", "training_only"), 0)
        for name, array in self.state_dict().items():
            first = name.split(".")[0]
            places = [place for place in list(found)[1:] if first in getattr(self, place)]
            found[places[0] if places else "table"] += array.numel() * array.element_size()
        size = torch.finfo(self._float_dtype()).bits // 8
        return TableMemory(
            name="",
            kind=self.kind,
            num_entities=self.num_embeddings,
            width=self.embedding_dim,
            num_rows=self._num_rows(),
            table_bytes=found["table"],
            code_bytes=found["codes"],
            personal_bytes=found["personal"],
            full_table_bytes=self.num_embeddings * self.embedding_dim * size,
            sleeping_bytes=found["training_only"],
        )

    def make_room_for(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Take the number of lines that a state dict has, where training decides about it."""
        for name in (*self.flexible, *self.training_only):
            found = state.get(prefix + name)
            own = getattr(self, name)
            if isinstance(found, Tensor) and found.shape[1:] == own.shape[1:]:
                self._resize(name, found.shape[0])

    def extra_repr(self) -> str:
        given = {key: value for key, value in self.options().items() if value not in (None, 0)}
        shown = [f"{given.pop('num_embeddings')}", f"{given.pop('embedding_dim')}"]
        return ", ".join([*shown, *(f"{key}={value!r}" for key, value in given.items())])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.make_room_for(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _resize(self, name: str, num_lines: int) -> None:
        """Let an array have so many lines; what it held is gone if that is another number."""
        old = getattr(self, name)
        if old.shape[0] == num_lines:
            return
        new = old.detach().new_zeros(num_lines, *old.shape[1:])
        setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    def _num_rows(self) -> int:
        """Rows that serve, for reports; 0 where the method has none."""
        weight = getattr(self, "weight", None)
        return weight.shape[0] if isinstance(weight, Tensor) else 0

    def _float_dtype(self) -> torch.dtype:
        arrays = self.state_dict().values()
        return next((a.dtype for a in arrays if a.is_floating_point()), torch.float32)

    def _check(self, ids: Tensor) -> None:
        """A hash would turn any id into a row: a wrong one must be caught before."""
        if ids.dtype not in (torch.int64, torch.int32):
            raise DtypeError(f"ids has type {ids.dtype}; wanted torch.int64 or torch.int32")
        if torch.compiler.is_compiling() or not ids.numel():
            return
        low, high = ids.aminmax()
        if low < 0 or high >= self.num_embeddings:
            flat = ids.reshape(-1)
            outside = ((flat < 0) | (flat >= self.num_embeddings)).nonzero().flatten()
            raise EntityIdError(
                f"id {int(flat[outside[0]])} at position {int(outside[0])} of the look-up is "
                f"outside [0, {self.num_embeddings}), the entities of this table; was the table "
                "made for another vocabulary?"
            )


def whole_rows(kind: str, embedding_dim: int, num_bytes: int) -> int:
    """How many rows of float32 fit into so many bytes, for a method that stores nothing else.

    raises : ArgumentError if not even one does; `kind` names the method
    """
    num_rows = num_bytes // (4 * embedding_dim)
    if num_rows < 1:
        raise too_small(kind, num_bytes, 4 * embedding_dim)
    return num_rows


def too_small(kind: str, num_bytes: int, least: int) -> ArgumentError:
    """The error of `within` for a budget below what a method takes at least."""
    return ArgumentError(
        f"{num_bytes} bytes are too few for a table of kind {kind}, which takes at least {least}; "
        "raise the budget, or choose another embedding"
    )
