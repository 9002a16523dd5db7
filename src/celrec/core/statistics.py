"""Per-entity sums of gradients and curvatures, from recorded look-ups.

For an entity e whose vector is x_e, over the samples j that look it up:

    g_e = sum_j dl_j/dx_e          h_e = sum_j (dl_j/dx_e)^2          n_e = number of samples

h is the diagonal of the empirical Fisher information, valid as a curvature when the loss l is in
nats. A sample's gradient is summed over its look-ups of e before squaring. What the diagonal leaves
out, how the coordinates of a gradient vary together, is kept once for the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from celrec.core.recording import GradientProbe, LookUp, SampleLoss, SamplePass, attached
from celrec.errors import LossError

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable


@dataclass(frozen=True)
class EntityStatistics:
    """Sums over the samples of each of E entities.

    entities : int64 (E,)   ascending; only entities that some sample looks up
    count : int64 (E,)      n_e >= 1
    gradient : (E, D)       g_e, in nats per unit of the vector
    curvature : (E, D)      h_e >= 0
    fisher : (D, D)         sum over all samples of the table of dl_j/dx dl_j/dx^T, whatever the
        entity; its correlations stand for those of each entity. None: none are known
    """

    entities: Tensor
    count: Tensor
    gradient: Tensor
    curvature: Tensor
    fisher: Tensor | None = None

    def select(self, index: Tensor) -> EntityStatistics:
        """The statistics at some positions, (M,), of the E entities."""
        return EntityStatistics(
            self.entities[index],
            self.count[index],
            self.gradient[index],
            self.curvature[index],
            self.fisher,
        )


@dataclass(frozen=True)
class StatisticsPass:
    """What one pass over the samples finds.

    statistics : of the entities asked for
    count : int64 (N,)        n_e of all entities, asked for or not
    total_loss : of all samples, in nats
    is_interacting : whether some sample looks up several entities of the table
    """

    statistics: EntityStatistics
    count: Tensor
    total_loss: float
    is_interacting: bool


def bytes_per_entity(width: int) -> int:
    """The memory that statistics take: two (D,) float sums, and counts and ids."""
    return 2 * 4 * width + 24


def collect_statistics(
    table: ClusteredTable, loss: SampleLoss, entities: Tensor | None = None
) -> StatisticsPass:
    """Make one pass over the samples and sum gradients and curvatures per entity.

    table : the embedding whose look-ups are recorded
    loss : the samples and their losses
    entities : int64 (M,) ascending, a block to collect; None for all N
        Memory is M x 2 D floats.
    raises : LossError, SampleError
    """
    num_slots = table.num_embeddings if entities is None else entities.numel()
    device = table.weight.device
    dtype = torch.promote_types(table.weight.dtype, torch.float32)
    gradient = torch.zeros(num_slots, table.row_dim, dtype=dtype, device=device)
    curvature = torch.zeros_like(gradient)
    fisher = gradient.new_zeros(table.row_dim, table.row_dim)
    count = torch.zeros(table.num_embeddings, dtype=torch.long, device=device)
    slot_of = None
    if entities is not None:
        entities = entities.to(device)
        slot_of = torch.full((table.num_embeddings,), -1, device=device)
        slot_of[entities] = torch.arange(num_slots, device=device)
    is_interacting = False

    probe = GradientProbe(loss.sample_of)
    with attached(table, probe), torch.enable_grad(), loss.new_pass() as samples:
        for batch in samples:
            pairs = _pairs_of_batch(table, probe, samples, batch)
            if pairs is None:
                continue
            is_interacting |= pairs.is_interacting
            samples.count_entities(pairs.entities)
            count.index_add_(0, pairs.entities, torch.ones_like(pairs.entities))
            slots, sums = pairs.entities, pairs.gradients.to(dtype)
            fisher.addmm_(sums.T, sums)
            if slot_of is not None:
                slots = slot_of[slots]
                inside = slots >= 0
                slots, sums = slots[inside], sums[inside]
            gradient.index_add_(0, slots, sums)
            curvature.index_add_(0, slots, sums.square())

    if not bool(curvature.isfinite().all()):
        raise LossError(
            f"per_sample_loss is finite, but its gradient is not, in the round of table "
            f"{loss.table_name!r}; look for a square root or logarithm at 0 between that table "
            "and the loss"
        )
    wanted = count if entities is None else count[entities]
    seen = (wanted > 0).nonzero().flatten()
    everything = EntityStatistics(
        torch.arange(num_slots, device=device) if entities is None else entities,
        wanted,
        gradient,
        curvature,
        fisher,
    )
    found = everything if seen.numel() == num_slots else everything.select(seen)
    return StatisticsPass(found, count, float(samples.total), is_interacting)


def collect_cluster_fisher(table: ClusteredTable, loss: SampleLoss) -> ClusterFisher:
    """Make one pass over the samples and sum outer products of gradients per cluster.

    raises : LossError, SampleError
    """
    width, device = table.row_dim, table.weight.device
    fisher = torch.zeros(table.max_clusters, width, width, dtype=torch.float64, device=device)
    count = torch.zeros(table.max_clusters, dtype=torch.float64, device=device)
    clusters = table.cluster_ids()
    probe = GradientProbe(loss.sample_of)
    with attached(table, probe), torch.enable_grad(), loss.new_pass() as samples:
        for batch in samples:
            pairs = _pairs_of_batch(table, probe, samples, batch)
            if pairs is None:
                continue
            cluster = clusters[pairs.entities]
            order = cluster.argsort(stable=True)
            present, sizes = cluster.unique(return_counts=True)
            parts = pairs.gradients[order].split(sizes.tolist())
            for k, part in zip(present.tolist(), parts, strict=True):
                fisher[k] += part.T @ part
            count[present] += sizes
    return ClusterFisher(fisher, count)


@dataclass(frozen=True)
class ClusterFisher:
    """How gradients vary within each cluster: the curvature of its row.

    fisher : float64 (K_max, D, D)   sum over its samples of dl_j/dx dl_j/dx^T
    count : float64 (K_max,)         samples
    """

    fisher: Tensor
    count: Tensor


@dataclass(frozen=True)
class SampleEntityPairs:
    """Each pair of a sample and an entity that it looks up, once.

    samples, entities : int64 (P,)
    gradients : (P, D), summed over the look-ups of the pair
    """

    samples: Tensor
    entities: Tensor
    gradients: Tensor
    is_interacting: bool


def _pairs_of_batch(
    table: ClusteredTable, probe: GradientProbe, samples: SamplePass, batch: Any
) -> SampleEntityPairs | None:
    """Take the gradients of a batch's look-ups; None where it does not look the table up."""
    losses = samples.losses(batch)
    if not probe.look_ups:
        return None
    vectors = [look_up.vectors for look_up in probe.look_ups]
    gradients = torch.autograd.grad(losses.sum(), vectors, allow_unused=True)
    return sample_entity_pairs(table, probe.take(), gradients, len(losses))


def sample_entity_pairs(
    table: ClusteredTable,
    look_ups: list[LookUp],
    gradients: tuple[Tensor | None, ...],
    num_samples: int,
) -> SampleEntityPairs:
    """Sum gradients of look-ups, (*, D) each, over those of one entity by one sample."""
    ids, samples, sums = [], [], []
    for look_up, gradient in zip(look_ups, gradients, strict=True):
        look_up.check_samples(num_samples)
        if gradient is None:  # looked up, but without influence on the loss
            gradient = torch.zeros_like(look_up.vectors)
        gradient = gradient.reshape(-1, table.row_dim)
        keep = None if table.padding_idx is None else look_up.ids != table.padding_idx
        ids.append(look_up.ids if keep is None else look_up.ids[keep])
        samples.append(look_up.samples if keep is None else look_up.samples[keep])
        sums.append(gradient if keep is None else gradient[keep])
    if len(look_ups) == 1 and look_ups[0].is_one_per_sample:
        return SampleEntityPairs(samples[0], ids[0].long(), sums[0], is_interacting=False)
    key = torch.cat(samples) * table.num_embeddings + torch.cat(ids)
    pair, inverse = key.unique(return_inverse=True)
    summed = torch.zeros(pair.numel(), table.row_dim, dtype=sums[0].dtype, device=key.device)
    summed.index_add_(0, inverse, torch.cat(sums))
    sample = pair // table.num_embeddings
    return SampleEntityPairs(
        sample,
        pair % table.num_embeddings,
        summed,
        is_interacting=sample.unique().numel() < pair.numel(),
    )


def correlation_of(fisher: Tensor) -> Tensor:
    """The correlation matrix, (D, D), of gradients whose outer products sum to `fisher`.

    A coordinate that never has a gradient correlates with none.
    """
    deviation = fisher.diagonal().sqrt()
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    correlation = fisher * scale * scale.unsqueeze(1)
    return correlation.fill_diagonal_(1)
