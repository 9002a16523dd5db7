"""L2 on the vectors that a batch looks up, for models that know nothing of it.

Weight decay shrinks every row at every step. This penalty shrinks a vector each time it is used, so
entities with many samples are held in proportion, as in classic matrix factorization.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LookUpPenalty:
    """Listens to a model's embedding layers inside a `with` block.

    A layer counts if it follows the `nn.Embedding` contract, that is, if it has `embedding_dim`.

    weight : >= 0; 0 listens to nothing and costs nothing

    >>> import torch
    >>> table = nn.Embedding.from_pretrained(torch.eye(3))
    >>> with LookUpPenalty(table, weight=0.5) as penalty:
    ...     _ = table(torch.tensor([0, 1, 1, 2]))
    ...     penalty.take()
    tensor(0.5000)
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.weight = weight
        self._layers = [m for m in model.modules() if weight and isinstance(_width(m), int)]
        self._handles: list[RemovableHandle] = []
        self._parts: list[Tensor] = []

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_hook(self._listen) for layer in self._layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._parts.clear()

    def take(self) -> Tensor | float:
        """The penalty of the look-ups since the last call, a scalar; 0.0 if there were none.

        Summed over tables: the squares of all looked-up numbers, divided by the batch size; times
        the weight.
        """
        parts, self._parts = self._parts, []
        return self.weight * sum(parts, 0.0)

    def _listen(self, layer: nn.Module, arguments: Any, vectors: Tensor) -> None:
        self._parts.append(vectors.square().sum() / vectors.shape[0])


def _width(module: nn.Module) -> Any:
    return getattr(module, "embedding_dim", None)
