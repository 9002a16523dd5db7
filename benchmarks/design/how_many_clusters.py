"""How many clusters does `max_clusters="auto"` find? Fills docs/design/how-many-clusters.md.

    python benchmarks/design/how_many_clusters.py [planted] [ml-1m]

planted: nonnegative factorization of data whose clusters are known, ten seeds; a few minutes.
ml-1m: the GMF protocol of benchmarks/codes/run.py, hard codes, three seeds; a quarter of an hour.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from celrec.core.cluster_optimizer import ClusterOptimizer
from celrec.core.embedding import ClusteredEmbedding
from celrec.experiments.build import tables_of
from celrec.models.nmf import NMF

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "design" / "how-many-clusters.md"

# --- planted clusters ----------------------------------------------------------------------------

NUM_ENTITIES, NUM_CLUSTERS, RANK = 1000, 10, 5
OBSERVED, NOISE = 0.1, 0.5  # NOISE: of the standard deviation of the noise-free entries
LEAST_ORACLE = 0.99
EPOCHS, LEARNING_RATE, BATCH_SIZE = 26, 0.02, 1024


class Planted:
    """Users and items of ten unequal clusters, and a tenth of their noisy ratings.

    Rows are absolute normal numbers, drawn again until those who know all of them, and the noise,
    could tell the members of either side apart: an adjusted Rand index of LEAST_ORACLE. Closer rows
    than that no method can part.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.num_draws = 0
        while True:
            self.num_draws += 1
            self._draw()
            if min(self.oracle) >= LEAST_ORACLE:
                break

    def _draw(self) -> None:
        generator = self.generator
        weights = np.linspace(1, 5, NUM_CLUSTERS)  # the largest is five times the smallest
        sizes = np.rint(weights / weights.sum() * NUM_ENTITIES).astype(int)
        sizes[-1] += NUM_ENTITIES - sizes.sum()
        every_member = np.repeat(np.arange(NUM_CLUSTERS), sizes)
        clusters = [generator.permutation(every_member) for _ in range(2)]
        rows = [np.abs(generator.standard_normal((NUM_CLUSTERS, RANK))) for _ in range(2)]
        clean = (rows[0] @ rows[1].T)[clusters[0]][:, clusters[1]]
        ids = np.nonzero(generator.random(clean.shape) < OBSERVED)
        deviation = NOISE * clean.std()
        label = clean[ids] + deviation * generator.standard_normal(len(ids[0]))
        self.clusters, self.ids, self.label = clusters, ids, label
        self.oracle = []
        for side in (0, 1):
            other = rows[1 - side][clusters[1 - side][ids[1 - side]]]  # (n, RANK)
            square = (label[:, None] - other @ rows[side].T) ** 2 / (2 * deviation**2)
            loss = np.zeros((NUM_ENTITIES, NUM_CLUSTERS))
            np.add.at(loss, ids[side], square)
            loss -= np.log(sizes / NUM_ENTITIES)
            self.oracle.append(adjusted_rand_score(clusters[side], loss.argmin(1)))


def planted_line(seed: int) -> str:
    data = Planted(seed)
    user, item = (torch.tensor(column) for column in data.ids)
    label = torch.tensor(data.label, dtype=torch.float32)
    tables = [ClusteredEmbedding(NUM_ENTITIES, RANK, max_clusters="auto") for _ in range(2)]
    model = NMF(*tables)
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator, mean=float(label.mean()))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    variance = 1.0

    def per_sample_loss(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square() / (2 * variance)

    clusters = ClusterOptimizer(model, optimizer, per_sample_loss, seed=seed)
    batches = list(zip(user.split(8192), item.split(8192), label.split(8192), strict=True))
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (0.2 if epoch >= 0.75 * EPOCHS else 1)
        for batch in torch.randperm(len(label), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            (model(user[batch], item[batch]) - label[batch]).square().mean().backward()
            optimizer.step()
            model.project_()
        with torch.no_grad():
            variance = float((model(user, item) - label).square().mean())
        if clusters.schedule.is_due(epoch, EPOCHS):
            clusters.round(batches)
    found = [
        (table.num_clusters, adjusted_rand_score(planted, table.cluster_ids()))
        for table, planted in zip(tables, data.clusters, strict=True)
    ]
    cells = [seed, data.num_draws, *(f"{one:.4f}" for one in data.oracle)]
    cells += [count for count, _ in found] + [f"{index:.4f}" for _, index in found]
    return "| " + " | ".join(map(str, cells)) + " |"


def planted() -> list[str]:
    lines = [
        "| seed | draws | best possible index: users | items | clusters: users | items "
        "| index reached: users | items |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed in range(10):
        lines.append(planted_line(seed))
        print(lines[-1], flush=True)
    return lines


# --- MovieLens-1M --------------------------------------------------------------------------------


def ml_1m() -> list[str]:
    sys.path.insert(0, str(ROOT / "benchmarks" / "codes"))
    from run import PROTOCOLS, trained_clusters

    protocol = PROTOCOLS["ml-1m-likes"]
    lines = ["| seed | rows: users + items | test AUC |", "|---|---|---|"]
    figures = []
    for seed in protocol.seeds:
        session = trained_clusters(protocol, ("auto", "auto"), seed, final=True)
        figures.append(session.figure())
        rows = " + ".join(str(table.num_clusters) for table in tables_of(session.model).values())
        lines.append(f"| {seed} | {rows} | {figures[-1]:.4f} |")
        print(lines[-1], flush=True)
    return [*lines, f"| mean | | {mean(figures):.4f} |"]


# --- writing -------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], list[str]]] = {"planted": planted, "ml-1m": ml_1m}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        table = "\n".join(PARTS[name]())
        begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
        before, rest = PAGE.read_text(encoding="utf-8").split(begin)
        PAGE.write_text(before + begin + table + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
