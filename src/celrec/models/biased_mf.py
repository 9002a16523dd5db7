"""Matrix factorization with biases that live inside the shared rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celrec.errors import ArgumentError, check_number
from celrec.models.layers import (
    DrawsItself,
    LayerWidths,
    check_equal_widths,
    draw_rows,
    rows_of,
)

_NUM_BIASES = 2


class BiasedMF(nn.Module):
    """offset + user bias + item bias + dot product of the factors.

    Every row has F factors and two bias columns, so the entity's bias is clustered with the rest
    and nothing is private to an entity: the user's bias is column F of its row, the item's is
    column F + 1 of its own.

    user_embedding, item_embedding : layers of equal width F + 2, at least 3

    >>> model = BiasedMF(nn.Embedding(10, 4), nn.Embedding(20, 4))
    >>> model.set_offset(3.5)
    >>> model(torch.tensor([0, 9]), torch.tensor([19, 3])).shape
    torch.Size([2])
    """

    offset: Tensor

    def __init__(self, user_embedding: nn.Module, item_embedding: nn.Module) -> None:
        super().__init__()
        width = check_equal_widths(
            "BiasedMF", user_embedding=user_embedding, item_embedding=item_embedding
        )
        if width <= _NUM_BIASES:
            raise ArgumentError(
                f"BiasedMF was given layers of width {width}; wanted at least 3: two columns are "
                "biases, the rest factors"
            )
        self.user_embedding = user_embedding
        self.item_embedding = item_embedding
        self.register_buffer("offset", torch.zeros(()))

    @staticmethod
    def layer_widths(width: int) -> LayerWidths:
        """The layers to give, and their widths, for `width` factors."""
        return dict.fromkeys(("user_embedding", "item_embedding"), width + _NUM_BIASES)

    def set_offset(self, offset: float) -> None:
        """Set the prediction for an entity pair without any bias: the mean training label."""
        self.offset.fill_(check_number("offset", offset))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the factors from N(0, 0.1^2); biases start at zero where a layer has plain rows."""
        for layer in (self.user_embedding, self.item_embedding):
            draw_rows(layer, std=0.1, generator=generator)
            if not isinstance(layer, DrawsItself):
                rows_of(layer)[:, -_NUM_BIASES:] = 0

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predict: ids (B,) and (B,) -> (B,), in units of the label."""
        a, b = self.user_embedding(user), self.item_embedding(item)  # (B, F + 2)
        dot = (a[..., :-_NUM_BIASES] * b[..., :-_NUM_BIASES]).sum(-1)
        return dot + a[..., -2] + b[..., -1] + self.offset
