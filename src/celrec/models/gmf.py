"""Generalised matrix factorization in its plainest form: the dot product of two vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celrec.models.layers import LayerWidths, check_equal_widths, draw_rows


class GMF(nn.Module):
    """The dot product of a user's and an item's vector; no biases, no output weights.

    user_embedding, item_embedding : layers of equal width

    >>> model = GMF(nn.Embedding(10, 4), nn.Embedding(20, 4))
    >>> model(torch.tensor([0, 9]), torch.tensor([19, 3])).shape
    torch.Size([2])
    """

    def __init__(self, user_embedding: nn.Module, item_embedding: nn.Module) -> None:
        super().__init__()
        self.width = check_equal_widths(
            "GMF", user_embedding=user_embedding, item_embedding=item_embedding
        )
        self.user_embedding = user_embedding
        self.item_embedding = item_embedding

    @staticmethod
    def layer_widths(width: int) -> LayerWidths:
        """The layers to give, and their widths, for `width` factors."""
        return {"user_embedding": width, "item_embedding": width}

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all rows anew, so that predictions start with a variance of 1 / width."""
        for layer in (self.user_embedding, self.item_embedding):
            draw_rows(layer, std=self.width**-0.5, generator=generator)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predict: ids (B,) and (B,) -> (B,); a logit where labels are 0 and 1."""
        return (self.user_embedding(user) * self.item_embedding(item)).sum(-1)
