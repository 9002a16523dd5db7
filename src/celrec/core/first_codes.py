"""First codes: which clusters a new entity is likely in, from its side features.

A new user may come with an age and a country, a new item with a genre and a price. `FirstCodes` is
a multinomial logistic regression from such features to clusters, fitted to the codes of entities
that have data. What it predicts is a prior over clusters: by itself it gives a new entity's first
code, and `ClusterOptimizer.update_codes(..., prior=...)` starts from it when samples come.
Ridge regression from features to vectors foretold new entities of MovieLens no better, and gives no
prior.

Not in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from celrec.core.blend import CodePlan, NearestBlend, checked_prior
from celrec.errors import ArgumentError, check_count

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

_STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
_HELD_OUT = 5  # one entity in so many chooses the strength
_MOST_ENTITIES = 100_000  # more make a fit slower and no better


class FirstCodes(nn.Module):
    """Predicts from side features which clusters an entity is in. Make one with `fit`.

    num_features : F >= 1
    max_clusters : K_max of the table

    >>> from celrec.core.embedding import ClusteredEmbedding
    >>> is_odd = torch.arange(100) % 2
    >>> users = ClusteredEmbedding.from_pretrained(torch.tensor([[1.0], [5.0]]), is_odd)
    >>> features = is_odd.float().unsqueeze(1)
    >>> first = FirstCodes.fit(users, torch.arange(100), features)
    >>> new = torch.tensor(users.add_entities(2))
    >>> users.commit_codes(first.plan(users, new, torch.tensor([[0.0], [1.0]])))
    >>> users(new).flatten().tolist()
    [1.0, 5.0]
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, max_clusters: int) -> None:
        super().__init__()
        check_count("num_features", num_features, at_least=1)
        check_count("max_clusters", max_clusters, at_least=2)
        self.register_buffer("weight", torch.zeros(num_features, max_clusters))
        self.register_buffer("bias", torch.zeros(max_clusters))

    @classmethod
    def fit(
        cls, table: ClusteredTable, entities: Tensor, features: Tensor, *, seed: int = 0
    ) -> Self:
        """Fit to the codes that entities have.

        The strength of the L2 penalty on standardised features is chosen on a fifth of the
        entities, held out; then all are fitted.

        entities : int64 (E,)   those with data; E >= 10
        features : float (E, F)   numbers on any scale; of a choice one 0/1 column for each value
        seed : decides who is held out and, of more than 100,000 entities, who is left out
        raises : ArgumentError, EntityIdError
        """
        _check_features(features, entities.numel())
        table.check_ids(entities)
        if entities.numel() < 2 * _HELD_OUT:
            raise ArgumentError(
                f"entities names {entities.numel()}; wanted {2 * _HELD_OUT} or more to learn from"
            )
        order = torch.randperm(entities.numel(), generator=torch.Generator().manual_seed(seed))
        order = order[:_MOST_ENTITIES].to(entities.device)
        entities, features = entities[order].to(table.weight.device), features[order]
        device = table.weight.device
        centre = features.double().mean(0).to(device)
        scale = features.double().std(0).to(device)
        scale = torch.where(scale > 0, scale, torch.inf)  # what never varies says nothing
        inputs = (features.to(device).double() - centre) / scale
        live = table.live_clusters()
        wanted = _code_weights(table, entities)[:, live]  # (E, K)

        held_out = slice(None, entities.numel() // _HELD_OUT)
        rest = slice(entities.numel() // _HELD_OUT, None)
        figures, solution = [], None
        for strength in reversed(_STRENGTHS):  # each starts from the one before
            solution = _solve(inputs[rest], wanted[rest], strength, solution)
            figures.append(float(_cross_entropy(solution, inputs[held_out], wanted[held_out])))
        best = tuple(reversed(_STRENGTHS))[figures.index(min(figures))]
        solution = _solve(inputs, wanted, best, None)

        self = cls(features.shape[1], table.max_clusters).to(device)
        self.weight[:, live] = (solution[:-1] / scale.unsqueeze(1)).to(self.weight.dtype)
        self.bias.fill_(-torch.inf)
        shift = (centre / scale) @ solution[:-1]
        self.bias[live] = (solution[-1] - shift).to(self.bias.dtype)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """The probability of every cluster, (E, K_max), for features (E, F); rows sum to 1."""
        _check_features(features, features.shape[0], self.weight.shape[0])
        return torch.softmax(features.to(self.weight) @ self.weight + self.bias, 1)

    def plan(self, table: ClusteredTable, entities: Tensor, features: Tensor) -> CodePlan:
        """First codes, for `table.commit_codes`: of as many clusters as the table blends.

        entities : int64 (E,)      features : (E, F)
        raises : ArgumentError, EntityIdError
        """
        _check_features(features, entities.numel(), self.weight.shape[0])
        table.check_ids(entities)
        live = table.live_clusters()
        prior = checked_prior(table, self(features), entities.numel())[:, live]
        clusters = live.expand(entities.numel(), -1)
        blend_size = min(table.blend_size, live.numel())
        rows = table.weight.detach()
        return NearestBlend().code(entities, clusters, prior, rows, blend_size)


def _code_weights(table: ClusteredTable, entities: Tensor) -> Tensor:
    """The weight of every cluster in the codes of entities, double (E, K_max)."""
    clusters, weights = table.code_of(entities)
    if weights is None:
        weights = torch.ones_like(clusters, dtype=torch.float32)
    spread = torch.zeros(
        entities.numel(), table.max_clusters, dtype=torch.float64, device=clusters.device
    )
    return spread.scatter_add_(1, clusters, weights.double())


def _cross_entropy(solution: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Mean over entities, in nats; solution (F + 1, K), the last line a constant."""
    logits = inputs @ solution[:-1] + solution[-1]
    return -(wanted * torch.log_softmax(logits, 1)).sum(1).mean()


@torch.enable_grad()
def _solve(inputs: Tensor, wanted: Tensor, strength: float, start: Tensor | None) -> Tensor:
    """Minimise the summed cross entropy + strength / 2 |weights|^2, constants left free."""
    if start is None:
        start = inputs.new_zeros(inputs.shape[1] + 1, wanted.shape[1])
        start[-1] = (wanted.mean(0) + 1e-6).log()
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([solution], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = 0.5 * strength / len(inputs) * solution[:-1].square().sum()
        loss = _cross_entropy(solution, inputs, wanted) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()


def _check_features(features: Tensor, num_entities: int, num_features: int | None = None) -> None:
    shape = f"({num_entities}, {'F' if num_features is None else num_features})"
    if (
        features.dim() != 2
        or features.shape[0] != num_entities
        or features.shape[1] != (num_features or features.shape[1])
        or features.shape[1] == 0
    ):
        raise ArgumentError(
            f"features has shape {tuple(features.shape)}; wanted {shape}: a line per entity, in "
            "the same columns as when fitted"
        )
    is_bad = ~features.isfinite().all(1)
    if bool(is_bad.any()):
        raise ArgumentError(
            f"line {int(is_bad.nonzero()[0])} of features has NaN or infinity; fill in missing "
            "values, the mean say, before"
        )
