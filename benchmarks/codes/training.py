"""Trains one full or clustered model of a protocol, and makes codes of clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.codes.protocols import Rows, Setting
from celrec.core.blend import BlendRule
from celrec.core.memory import memory_report
from celrec.core.personal import PersonalRule
from celrec.data.interactions import Interactions
from celrec.experiments.build import (
    build_model,
    completed,
    divide,
    initialise,
    load_interactions,
    tables_of,
)
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import make_trainer
from celrec.models.layers import rows_of
from celrec.training.evaluation import predict, predict_ids


class Session:
    """A model in training, and its figures on the data it is to be scored on.

    is_final : trains on all but the test data and is scored on these; else it is validation data
    """

    def __init__(
        self, setting: Setting, values: dict[str, Any], seed: int, *, is_final: bool
    ) -> None:
        self.setting = setting
        changes: dict[str, Any] = {"seed": seed, "partition": {"merge_validation": is_final}}
        if setting.is_random:
            changes["partition"]["seed"] = seed
        config = RunConfig.from_values(merged(merged(setting.values, values), changes))
        interactions = load_interactions(config)
        self.config = config = completed(config, interactions)
        self.parts = divide(config, interactions)
        scored = self.parts.test if is_final else self.parts.validation
        assert scored is not None
        self.scored: Interactions = scored
        self.model = build_model(config, interactions.num_users, interactions.num_items)
        initialise(self.model, config, self.parts.train)
        self.trainer = make_trainer(config, self.model)
        self.columns = tuple(
            torch.tensor(column)
            for column in (self.parts.train.user, self.parts.train.item, self.parts.train.label)
        )

    def prediction(self) -> np.ndarray:
        return predict(self.model, self.scored).double().numpy()

    def figure(self) -> float:
        return figure(self.setting.metric, self.scored.label, self.prediction())

    def passes(self, batch_size: int) -> Passes:
        return Passes(self.columns, batch_size)

    def calibrate(self) -> None:
        """Bring squared errors into nats, for the model as it stands."""
        objective = self.trainer.objective
        if objective.needs_calibration:
            prediction = predict_ids(self.model, *self.columns[:2])
            objective.calibrate(prediction, self.columns[2])

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def line(self, seconds: float) -> dict[str, Any]:
        """What is written of the model as it stands."""
        memory = memory_report(self.model)
        num_entities = sum(table.num_entities for table in memory.tables)
        return {
            "figure": self.figure(),
            "rows": [table.num_rows for table in memory.tables],
            "personal": [getattr(t, "num_personal", 0) for t in tables_of(self.model).values()],
            "table_bytes": memory.table_bytes,
            "code_bytes": memory.code_bytes,
            "personal_bytes": memory.personal_bytes,
            "total_bytes": memory.total_bytes,
            "bytes_per_entity": memory.total_bytes / num_entities,
            "times_smaller": memory.times_smaller,
            "seconds": seconds,
        }


class Passes:
    """The training data in batches, in a new order each time."""

    def __init__(self, columns: tuple[torch.Tensor, ...], batch_size: int) -> None:
        self.columns = columns
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        order = torch.randperm(len(self.columns[0]), generator=self.generator)
        parts = [column[order].split(self.batch_size) for column in self.columns]
        return zip(*parts, strict=True)


def figure(metric: str, label: np.ndarray, prediction: np.ndarray) -> float:
    if metric == "mse":
        return float(np.square(label - prediction).mean())
    return float(roc_auc_score(label, prediction))


def trained_full(
    setting: Setting, candidate: dict[str, Any], seed: int, *, is_final: bool
) -> tuple[Session, list[float]]:
    """Train a full table; also the figure after every epoch, where figures choose.

    candidate : of `protocols.full_candidates`
    """
    values = {"embedding": {"kind": "full"}, "training": candidate["training"]}
    session = Session(setting, values, seed, is_final=is_final)
    start_full(session.model, candidate)
    session.trainer.fit(session.parts.train, None if is_final else session.parts.validation)
    history = session.trainer.history
    return session, [] if is_final else [line["validation"][setting.metric] for line in history]


@torch.no_grad()
def start_full(model: nn.Module, candidate: dict[str, Any]) -> None:
    """Give the random vectors of full tables a candidate's scale, and the start that they share."""
    for table in tables_of(model).values():
        rows_of(table).mul_(candidate.get("scale", 1.0))[:, 0] += candidate["start"]


def trained_clusters(setting: Setting, rows: Rows, seed: int, *, is_final: bool) -> Session:
    """Train clusters with hard codes."""
    session = untrained_clusters(setting, rows, seed, is_final=is_final)
    session.trainer.fit(session.parts.train)
    return session


def untrained_clusters(setting: Setting, rows: Rows, seed: int, *, is_final: bool) -> Session:
    """The same before its first epoch."""
    embedding = {"kind": "clustered", "user_rows": rows[0], "item_rows": rows[1]}
    values = merged(setting.clustered, {"embedding": embedding, "encoding": {"blend": 1}})
    return Session(setting, values, seed, is_final=is_final)


def blend(session: Session, m: int, temperature: float) -> None:
    clusters = session.trainer.clusters
    assert clusters is not None
    for table in clusters.tables.values():
        table.harden()
    session.calibrate()
    clusters.blend_rule = BlendRule(temperature=temperature)
    clusters.blend(session.passes(8192), m)


def personalize(
    session: Session, temperature: float, rule: dict[str, Any], bytes_per_entity: float | None
) -> None:
    """Give personal vectors, from hard codes: to everyone, or to some under a byte budget."""
    clusters, objective = session.trainer.clusters, session.trainer.objective
    assert clusters is not None
    session.calibrate()
    clusters.blend_rule = BlendRule(temperature=temperature)
    passes = session.passes(16_384 if len(session.columns[0]) > 200_000 else 4096)
    options: dict[str, Any] = {
        "rule": PersonalRule(**rule),
        "after_pass": objective.recalibrate,
    }
    if bytes_per_entity is None:
        clusters.blend(passes, 4)
        clusters.personalize(passes, **options)
    else:
        clusters.encode(passes, bytes_per_entity, **options)
