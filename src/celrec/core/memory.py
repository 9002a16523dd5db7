"""Exact byte accounting: what a model's embedding tables cost when they serve.

*Table bytes* are the live rows. *Code bytes* are every per-entity array that prediction needs.
*Personal bytes* are private vectors and biases. Their sum, *total bytes*, is what serving needs.
Sleeping rows and optimizer state are needed for training only and are listed apart; the map from
raw ids to entities is the same for every method and counts nowhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True)
class TableMemory:
    """The bytes of one embedding table.

    name : the module's name in its model
    kind : "full", "clustered", or what another method calls itself
    num_entities : N        width : D        num_rows : K, rows that serve
    table_bytes, code_bytes, personal_bytes : as this file's head defines them
    full_table_bytes : what N vectors of width D and the same number type take
    sleeping_bytes, optimizer_bytes : needed for training only
    """

    name: str
    kind: str
    num_entities: int
    width: int
    num_rows: int
    table_bytes: int
    code_bytes: int
    personal_bytes: int
    full_table_bytes: int
    sleeping_bytes: int = 0
    optimizer_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Table, code and personal bytes: what serving needs."""
        return self.table_bytes + self.code_bytes + self.personal_bytes

    @property
    def times_smaller(self) -> float:
        """Full table bytes over total bytes."""
        return self.full_table_bytes / self.total_bytes

    @property
    def times_smaller_table(self) -> float:
        """Full table bytes over table bytes; codes left out."""
        return self.full_table_bytes / self.table_bytes

    def as_dict(self) -> dict[str, Any]:
        """Every figure by name, ready for JSON."""
        return dataclasses.asdict(self) | _derived(self)


@dataclass(frozen=True)
class MemoryReport:
    """The bytes of all embedding tables of a model; the sums have the names of the parts."""

    tables: tuple[TableMemory, ...]

    @property
    def table_bytes(self) -> int:
        return sum(table.table_bytes for table in self.tables)

    @property
    def code_bytes(self) -> int:
        return sum(table.code_bytes for table in self.tables)

    @property
    def personal_bytes(self) -> int:
        return sum(table.personal_bytes for table in self.tables)

    @property
    def total_bytes(self) -> int:
        return sum(table.total_bytes for table in self.tables)

    @property
    def full_table_bytes(self) -> int:
        return sum(table.full_table_bytes for table in self.tables)

    @property
    def training_bytes(self) -> int:
        """Sleeping rows and optimizer state: not needed to serve."""
        return sum(table.sleeping_bytes + table.optimizer_bytes for table in self.tables)

    @property
    def times_smaller(self) -> float:
        return self.full_table_bytes / self.total_bytes

    @property
    def times_smaller_table(self) -> float:
        return self.full_table_bytes / self.table_bytes

    def as_dict(self) -> dict[str, Any]:
        """Sums and tables, ready for JSON."""
        return {
            "table_bytes": self.table_bytes,
            "code_bytes": self.code_bytes,
            "personal_bytes": self.personal_bytes,
            "full_table_bytes": self.full_table_bytes,
            "training_bytes": self.training_bytes,
            **_derived(self),
            "tables": [table.as_dict() for table in self.tables],
        }

    def __str__(self) -> str:
        lines = [
            "table               kind              N     D      K   table B    code B  personal B"
            "     total B  times smaller (table alone)"
        ]
        lines += [
            f"{t.name:<19} {t.kind:<10} {t.num_entities:>8} {t.width:>5} {t.num_rows:>6} "
            f"{t.table_bytes:>9} {t.code_bytes:>9} {t.personal_bytes:>11} {t.total_bytes:>11}  "
            f"{t.times_smaller:.1f} ({t.times_smaller_table:.1f})"
            for t in self.tables
        ]
        if self.tables:
            lines.append(
                f"together: {self.total_bytes:,} bytes of {self.full_table_bytes:,}, "
                f"{self.times_smaller:.1f} times smaller "
                f"({self.times_smaller_table:.1f} by rows alone)"
            )
        return "\n".join(lines)


@runtime_checkable
class SupportsMemory(Protocol):
    """A table that knows its own bytes."""

    def memory(self) -> TableMemory: ...


def memory_report(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> MemoryReport:
    """Count the bytes of every embedding table of a model.

    model : its clustered tables count, its `nn.Embedding` and `nn.EmbeddingBag` (kind "full"),
        and every module with a method `memory() -> TableMemory`
    optimizer : if given, its state for the tables' parameters is counted as training bytes

    >>> report = memory_report(nn.Sequential(nn.Embedding(1000, 8)))
    >>> report.tables[0].name, report.table_bytes, report.times_smaller
    ('0', 32000, 1.0)
    """
    tables = []
    for name, module in model.named_modules():
        if isinstance(module, SupportsMemory):
            memory = module.memory()
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            memory = _full_memory(module)
        else:
            continue
        tables.append(
            dataclasses.replace(
                memory, name=name, optimizer_bytes=_optimizer_bytes(module, optimizer)
            )
        )
    return MemoryReport(tuple(tables))


def _full_memory(module: nn.Embedding | nn.EmbeddingBag) -> TableMemory:
    num_entities, width = module.weight.shape
    num_bytes = module.weight.numel() * module.weight.element_size()
    return TableMemory(
        name="",
        kind="full",
        num_entities=num_entities,
        width=width,
        num_rows=num_entities,
        table_bytes=num_bytes,
        code_bytes=0,
        personal_bytes=0,
        full_table_bytes=num_bytes,
    )


def _optimizer_bytes(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    if optimizer is None:
        return 0
    return sum(
        value.numel() * value.element_size()
        for parameter in module.parameters()
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, torch.Tensor)
    )


def _derived(memory: TableMemory | MemoryReport) -> dict[str, Any]:
    return {
        "total_bytes": memory.total_bytes,
        "times_smaller": memory.times_smaller,
        "times_smaller_table": memory.times_smaller_table,
    }
