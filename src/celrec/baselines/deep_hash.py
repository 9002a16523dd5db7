"""Deep hash embedding: no table at all, but a network that computes a vector from hashes of the id.

An id is hashed many times over, and the hash values, as numbers in [-1, 1), are a fingerprint that
no other entity shares. A deep network turns it into the vector. So all that is stored is the
network; what an entity is like must be learned into the same weights as for all others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.hashing import mixed, multiplier_of, random_multipliers
from celrec.errors import check_count

_LAYERS = 3
_HASHES_PER_UNIT = 8
_MOST_HASHES = 1024
_ENCODINGS_KEPT = 1 << 25  # numbers; 128 MiB
_SAMPLE = 1024  # entities whose first vectors are measured


class DeepHashEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` that computes a vector by a network, from hashes of the id.

    num_hashes : k >= 1         inputs of the network
    hidden_width : h >= 1       units of each hidden layer
    num_layers : >= 1           hidden layers, with Mish between
    seed : another one hashes otherwise
    other arguments : as in `CompressedEmbedding`

    The encodings of ids are kept in memory where they are few enough (2^25 numbers). They follow
    from the seed, are no part of the state and are not counted: they save time only.

    Source: Kang et al., "Learning to embed categorical features without embedding tables for
    recommendation", KDD 2021: uniform encodings, equal hidden layers, Mish. Departures: no batch
    normalization, with which a vector would depend on the batch (neither batch statistics over all
    entities nor layer normalization did better in our trials); three hidden layers in place of
    five; and at most 1,024 hashes, their number, but eight for each hidden unit where the budget is
    smaller: at equal bytes these did better than as many hashes as units.

    >>> table = DeepHashEmbedding(1000, 8, num_hashes=32, hidden_width=4)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.memory().total_bytes == 4 * num_parameters(32, 4, 3, width=8)
    True
    """

    kind = "dhe"
    source = "Kang et al., KDD 2021"

    multipliers: Tensor
    encodings: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_hashes: int,
        hidden_width: int,
        num_layers: int = _LAYERS,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_hashes = check_count("num_hashes", num_hashes, at_least=1)
        self.hidden_width = check_count("hidden_width", hidden_width, at_least=1)
        self.num_layers = check_count("num_layers", num_layers, at_least=1)
        layers: list[nn.Module] = []
        inputs = num_hashes
        for _ in range(num_layers):
            layers += [nn.Linear(inputs, hidden_width), nn.Mish()]
            inputs = hidden_width
        self.network = nn.Sequential(*layers, nn.Linear(inputs, embedding_dim))
        multipliers = torch.tensor(random_multipliers(num_hashes, seed))
        self.register_buffer("multipliers", multipliers, persistent=False)
        encodings = None
        if num_embeddings * num_hashes <= _ENCODINGS_KEPT:
            encodings = encoded(torch.arange(num_embeddings), multipliers)
        self.register_buffer("encodings", encodings, persistent=False)
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        limit = num_bytes // 4

        def fits(hidden_width: int, num_hashes: int) -> bool:
            needed = num_parameters(num_hashes, hidden_width, _LAYERS, width=embedding_dim)
            return needed <= limit

        if not fits(1, 1):
            least = 4 * num_parameters(1, 1, _LAYERS, width=embedding_dim)
            raise too_small(cls.kind, num_bytes, least)
        h = 1
        while fits(h + 1, min(_HASHES_PER_UNIT * (h + 1), _MOST_HASHES)):
            h += 1
        left = limit - num_parameters(0, h, _LAYERS, width=embedding_dim)
        k = min(left // h, _MOST_HASHES)
        return {"num_hashes": k, "hidden_width": h}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw weights by He's rule; the last layer then makes vectors have this deviation."""
        linear = [layer for layer in self.network if isinstance(layer, nn.Linear)]
        for layer in linear:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        linear[0].weight *= math.sqrt(3)  # the variance of encodings is 1/3
        step = -(-self.num_embeddings // _SAMPLE)
        ids = torch.arange(0, self.num_embeddings, step, device=linear[0].weight.device)
        vectors = self.network(self._encodings_of(ids))
        found = (vectors - vectors.mean(0)).square().mean().sqrt()
        if found == 0:  # one entity, or hidden units that are all switched off
            linear[-1].bias.copy_(std * torch.randn(self.embedding_dim, generator=generator))
            return
        linear[-1].weight *= std / found
        linear[-1].bias.copy_(-vectors.mean(0) * std / found)

    def look_up(self, ids: Tensor) -> Tensor:
        some, place_of = ids.unique(return_inverse=True)
        return self.network(self._encodings_of(some)).index_select(0, place_of)

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "num_hashes": self.num_hashes,
            "hidden_width": self.hidden_width,
            "num_layers": self.num_layers,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # which tells all about the network

    def _encodings_of(self, ids: Tensor) -> Tensor:
        if self.encodings is not None:
            return self.encodings.index_select(0, ids)
        return encoded(ids, self.multipliers).to(self._float_dtype())


def encoded(ids: Tensor, multipliers: Tensor) -> Tensor:
    """Hash values of ids as numbers in [-1, 1), float32 (L, k).

    ids : int64 (L,)      multipliers : int64 (k,), odd, one for each hash

    >>> encoded(torch.arange(3), torch.tensor(random_multipliers(4, seed=0))).shape
    torch.Size([3, 4])
    """
    keys = mixed(ids + 1, multiplier_of(0)).unsqueeze(1)  # one multiplication is then enough
    return ((keys * multipliers) >> 40).float() / (1 << 23)  # the highest 24 bits, one for the sign


def num_parameters(num_hashes: int, hidden_width: int, num_layers: int, *, width: int) -> int:
    """k h + h h (L - 1) + h D weights, and the biases.

    >>> num_parameters(32, 4, 3, width=8)
    212
    """
    weights = num_hashes + (num_layers - 1) * hidden_width + width
    return hidden_width * weights + num_layers * hidden_width + width
