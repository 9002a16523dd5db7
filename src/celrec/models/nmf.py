"""Nonnegative matrix factorization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celrec.models.layers import LayerWidths, check_equal_widths, rows_of


class NMF(nn.Module):
    """The dot product of nonnegative vectors.

    Rows stay nonnegative by projection: call `project_` after every optimizer step, as the trainer
    does. For nonnegative labels (ratings, counts).

    user_embedding, item_embedding : layers of equal width, with plain rows

    Source: Lee and Seung, "Learning the parts of objects by non-negative matrix factorization",
    Nature 1999; by projected gradient steps as in Chen et al. 2023, section 5.

    >>> model = NMF(nn.Embedding(10, 4), nn.Embedding(20, 4))
    >>> model.project_()
    >>> bool((model(torch.arange(10), torch.arange(10)) >= 0).all())
    True
    """

    def __init__(self, user_embedding: nn.Module, item_embedding: nn.Module) -> None:
        super().__init__()
        self.width = check_equal_widths(
            "NMF", user_embedding=user_embedding, item_embedding=item_embedding
        )
        for layer in (user_embedding, item_embedding):
            rows_of(layer)  # what has none cannot be kept nonnegative
        self.user_embedding = user_embedding
        self.item_embedding = item_embedding

    @staticmethod
    def layer_widths(width: int) -> LayerWidths:
        """The layers to give, and their widths, for `width` factors."""
        return {"user_embedding": width, "item_embedding": width}

    @torch.no_grad()
    def reset_parameters(
        self, generator: torch.Generator | None = None, *, mean: float = 1.0
    ) -> None:
        """Draw all rows uniformly, nonnegative, so that predictions start around `mean` > 0."""
        for layer in (self.user_embedding, self.item_embedding):
            nn.init.uniform_(rows_of(layer), 0, 2 * (mean / self.width) ** 0.5, generator=generator)

    @torch.no_grad()
    def project_(self) -> None:
        """Set negative entries of all rows to zero, in place."""
        for layer in (self.user_embedding, self.item_embedding):
            rows_of(layer).clamp_(min=0)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predict: ids (B,) and (B,) -> (B,), in units of the label."""
        return (self.user_embedding(user) * self.item_embedding(item)).sum(-1)
