"""Neural matrix factorization: a product of vectors beside a network over two others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from celrec.errors import ArgumentError
from celrec.models.layers import LayerWidths, check_equal_widths, draw_rows, width_of


class NeuMF(nn.Module):
    """The element-wise product of one pair of vectors, beside an MLP over another pair.

    The last layer weighs the product's elements and the MLP's outputs.

    gmf_user, gmf_item : layers of equal width, multiplied with each other
    mlp_user, mlp_item : layers of any width, put side by side into the MLP
    hidden : >= 1 positive widths of the MLP's layers, from the input on

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, section 3.4; trained whole, from
    random starts, without their separate pre-training.

    >>> tables = [nn.Embedding(10, 4) for _ in range(4)]
    >>> model = NeuMF(*tables, hidden=(8, 4))
    >>> model(torch.tensor([0, 9]), torch.tensor([9, 3])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        gmf_user: nn.Module,
        gmf_item: nn.Module,
        mlp_user: nn.Module,
        mlp_item: nn.Module,
        hidden: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        if not hidden or any(width < 1 for width in hidden):
            raise ArgumentError(f"hidden is {tuple(hidden)}; wanted one or more positive widths")
        gmf_width = check_equal_widths("NeuMF", gmf_user=gmf_user, gmf_item=gmf_item)
        self.gmf_user = gmf_user
        self.gmf_item = gmf_item
        self.mlp_user = mlp_user
        self.mlp_item = mlp_item
        widths = [width_of(mlp_user) + width_of(mlp_item), *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.output = nn.Linear(gmf_width + hidden[-1], 1)

    @staticmethod
    def layer_widths(width: int) -> LayerWidths:
        """The layers to give, and their widths, for `width` factors in each part."""
        return dict.fromkeys(("gmf_user", "gmf_item", "mlp_user", "mlp_item"), width)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw rows from N(0, 0.1^2) and the network's weights by Glorot's rule; biases are 0."""
        for layer in (self.gmf_user, self.gmf_item, self.mlp_user, self.mlp_item):
            draw_rows(layer, std=0.1, generator=generator)
        for module in [*self.mlp, self.output]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predict: ids (B,) and (B,) -> (B,); a logit where labels are 0 and 1."""
        product = self.gmf_user(user) * self.gmf_item(item)
        deep = self.mlp(torch.cat([self.mlp_user(user), self.mlp_item(item)], -1))
        return self.output(torch.cat([product, deep], -1)).squeeze(-1)
