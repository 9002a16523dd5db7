"""What every model asks of the embedding layers it is given.

A layer is `torch.nn.Embedding` or anything that follows its contract: called with ids of any shape
(*), it returns vectors (*, D); `weight` is (rows, D), `embedding_dim` is D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from celrec.errors import ArgumentError


def check_equal_widths(model: str, **layers: nn.Module) -> int:
    """The width that all of these layers have.

    raises : ArgumentError naming the layers if they differ

    >>> check_equal_widths("GMF", users=nn.Embedding(5, 8), items=nn.Embedding(9, 8))
    8
    """
    widths = {name: width_of(layer) for name, layer in layers.items()}
    if len(set(widths.values())) > 1:
        raise ArgumentError(f"{model} was given layers of width {widths}; wanted equal widths")
    return next(iter(widths.values()))


def width_of(layer: nn.Module) -> int:
    """D of a layer: the width of the vectors it returns."""
    width = getattr(layer, "embedding_dim", None)
    if not isinstance(width, int):
        raise ArgumentError(
            f"a {type(layer).__name__} has no embedding_dim; wanted an embedding layer, such as "
            "torch.nn.Embedding"
        )
    return width


@runtime_checkable
class DrawsItself(Protocol):
    """A layer whose vectors are no plain rows, and which knows how to draw its parameters."""

    def draw(self, std: float, generator: torch.Generator | None = None) -> None: ...

    def reset_parameters(
        self, std: float = 1.0, generator: torch.Generator | None = None
    ) -> None: ...


def rows_of(layer: nn.Module) -> Tensor:
    """The rows of a layer, (rows, D).

    raises : ArgumentError for one whose vectors are no plain rows
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise ArgumentError(
            f"a {type(layer).__name__} has no rows (`weight`); wanted a layer whose vectors are "
            "rows of one table, such as full, clustered or hashed ones"
        )
    return weight


@torch.no_grad()
def draw_rows(layer: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Draw all rows from N(0, std^2) in place; a padding entity's row of `nn.Embedding` is zero.

    The first row is made nonnegative. A clustered table starts with all its entities in that row,
    and two tables whose first rows agree in sign give a prediction that can grow at once. A layer
    that draws itself is asked for vectors of that deviation. Rows narrower than vectors are drawn
    so much wider that vectors are as long.
    """
    if isinstance(layer, DrawsItself):
        layer.reset_parameters(std, generator)
        return
    rows = rows_of(layer)
    width = getattr(layer, "embedding_dim", rows.shape[1])
    nn.init.normal_(rows, std=std * (width / rows.shape[1]) ** 0.5, generator=generator)
    rows[0].abs_()
    padding_idx = getattr(layer, "padding_idx", None)
    if isinstance(layer, nn.Embedding) and padding_idx is not None:
        rows[padding_idx] = 0


LayerWidths = Mapping[str, int]
"""Argument name -> width. A name with "user" in it is for users, with "item" for items."""
