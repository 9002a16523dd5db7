"""From the words of a configuration to objects. Each choice is looked up in one table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from celrec.baselines.contract import CompressedEmbedding, Occurrences
from celrec.baselines.registry import all_baselines
from celrec.core.embedding import ClusteredEmbedding
from celrec.core.encode import rows_within
from celrec.core.recording import evaluation_mode
from celrec.data.catalog import CATALOG, load
from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.partition import (
    Partition,
    by_time,
    leave_last_out,
    random_partition,
    truncated,
)
from celrec.data.readers import read_interactions
from celrec.data.sampling import sample_negatives
from celrec.errors import ArgumentError, CatalogError, ConfigError, DataError, nearest_name
from celrec.experiments.config import DataConfig, EmbeddingConfig, RunConfig, TaskConfig
from celrec.losses import BinaryCrossEntropy, Objective, SquaredError
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF
from celrec.models.layers import rows_of
from celrec.models.neumf import NeuMF
from celrec.models.nmf import NMF

DEFAULT_ROWS = 64

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "binary": BinaryCrossEntropy,
    "rating": SquaredError,
}


def _partition_seed(config: RunConfig) -> int:
    return config.seed if config.partition.seed is None else config.partition.seed


PARTITIONS: dict[str, Callable[[Interactions, RunConfig], Partition]] = {
    "random": lambda data, config: random_partition(
        data,
        seed=_partition_seed(config),
        test_share=config.partition.test_share,
        validation_share=config.partition.validation_share,
    ),
    "leave-last-out": lambda data, config: leave_last_out(
        data,
        num_test=config.partition.num_test,
        num_validation=config.partition.num_validation,
    ),
    "time": lambda data, config: by_time(
        data,
        test_share=config.partition.test_share,
        validation_share=config.partition.validation_share,
    ),
    "truncated": lambda data, config: truncated(data, seed=_partition_seed(config)),
}
MODELS: dict[str, Any] = {"gmf": GMF, "biased-mf": BiasedMF, "nmf": NMF, "neumf": NeuMF}


@dataclass(frozen=True)
class Parts:
    """The interactions of a run, divided; all have the same vocabularies.

    validation : None where it is empty or merged into train
    partition : how they were divided
    """

    train: Interactions
    validation: Interactions | None
    test: Interactions
    partition: Partition


# --- data ----------------------------------------------------------------------------------------


def load_interactions(config: RunConfig, *, progress: bool = False) -> Interactions:
    """Read the data set that a configuration names: from the catalog, or from a file.

    raises : CatalogError, DataError
    """
    data = config.data
    if data.source in CATALOG:
        return load(data.source, progress=progress)
    path = Path(data.source)
    if not path.exists() and "." not in path.name and len(path.parts) == 1:
        raise CatalogError(
            f"no file and no data set of the catalog is called {data.source!r}; "
            f"{nearest_name(data.source, CATALOG)}"
        )
    return read_interactions(
        path,
        user=data.user,
        item=data.item,
        label=data.label if config.task.negatives is None else None,
        timestamp=data.time,
        title=data.title,
        separator=data.separator,
        columns=data.columns,
    )


def completed(config: RunConfig, interactions: Interactions) -> RunConfig:
    """Fill in what the configuration leaves to the data.

    returns : a configuration that says the same on any data, and finds its file from any folder
    raises : ConfigError where the data do not decide either
    """
    partition = config.partition
    if partition.kind is None:
        has_order = config.task.kind == "binary" and interactions.timestamp is not None
        partition = replace(partition, kind="leave-last-out" if has_order else "random")
    if partition.seed is None:
        partition = replace(partition, seed=config.seed)
    embedding = config.embedding
    if embedding.kind != "full":
        embedding = _completed_embedding(config, interactions)
    return replace(
        config,
        data=_with_absolute_source(config.data),
        task=_completed_task(config.task, interactions),
        partition=partition,
        embedding=embedding,
    )


def divide(config: RunConfig, interactions: Interactions) -> Parts:
    """Make labels, divide, and add negatives where the task asks for them.

    config : completed
    """
    task = config.task
    labelled = interactions
    if task.positive_from is not None:
        labelled = binarize(interactions, task.positive_from, task.drop_rating)
    elif task.drop_rating is not None:
        labelled = interactions.take(interactions.label != np.float32(task.drop_rating))
    partition = PARTITIONS[str(config.partition.kind)](labelled, config)
    if config.partition.merge_validation:
        partition = partition.merge_validation()

    def part(rows: np.ndarray, seed: int) -> Interactions:
        chosen = labelled.take(rows)
        if task.negatives is None:
            return chosen
        return sample_negatives(
            chosen, per_positive=task.negatives, seed=3 * config.seed + seed, known=labelled
        )

    return Parts(
        train=part(partition.train, 0),
        validation=part(partition.validation, 1) if partition.validation.size else None,
        test=part(partition.test, 2),
        partition=partition,
    )


def _with_absolute_source(data: DataConfig) -> DataConfig:
    if data.source in CATALOG:
        return data
    return replace(data, source=str(Path(data.source).resolve()))


def _completed_embedding(config: RunConfig, interactions: Interactions) -> EmbeddingConfig:
    """With the rows that are not given: by the byte budget, or the default."""
    embedding, budget = config.embedding, config.encoding.bytes_per_entity
    counts = interactions.num_users, interactions.num_items
    if budget is None:
        defaults = [min(DEFAULT_ROWS, count) for count in counts]
    elif embedding.is_clustered:
        widths = MODELS[config.model.kind].layer_widths(config.model.width)
        tables = [(counts["user" not in name], width) for name, width in widths.items()]
        try:
            num_rows, row_dim = rows_within(tables, budget, embedding.row_dim)
        except ArgumentError as error:
            raise ConfigError(f"clustered tables: {error}") from error
        defaults = [num_rows] * 2
        embedding = replace(embedding, row_dim=row_dim)
    else:  # `_build_table` asks the baseline
        return embedding
    user_rows, item_rows = (
        default if given is None else given
        for given, default in zip((embedding.user_rows, embedding.item_rows), defaults, strict=True)
    )
    return replace(embedding, user_rows=user_rows, item_rows=item_rows)


def _completed_task(task: TaskConfig, interactions: Interactions) -> TaskConfig:
    """Labels of 0 and 1 stay; ratings from 1 to 5 are a yes from 4, and 3 is left out."""
    if task.kind != "binary" or task.positive_from is not None or task.negatives is not None:
        return task
    low, high = float(interactions.label.min()), float(interactions.label.max())
    if low == high:
        raise DataError(
            f"every label of {interactions.name} is {low:g}: there is nothing to tell apart. If "
            "its rows are clicks or purchases, draw the missing class with --negatives 4"
        )
    if np.isin(interactions.label, (0, 1)).all():
        return replace(task, positive_from=1.0)
    if low >= 1 and high <= 5:
        return replace(task, positive_from=4.0, drop_rating=task.drop_rating or 3.0)
    raise ConfigError(
        f"labels of {interactions.name} go from {low:g} to {high:g}, neither 0 and 1 nor ratings "
        "from 1 to 5; say from which value on a label is a yes with --positive-from"
    )


# --- models --------------------------------------------------------------------------------------


def build_objective(config: RunConfig) -> Objective:
    """The loss of the task."""
    return OBJECTIVES[config.task.kind]()


def build_model(config: RunConfig, num_users: int, num_items: int) -> nn.Module:
    """The model over its tables. `initialise` or a checkpoint gives it its parameters.

    config : completed
    raises : ArgumentError for rows out of range, naming the table
    """
    kind = MODELS[config.model.kind]
    tables = {
        name: _build_table(config, name, num_users, num_items, width)
        for name, width in kind.layer_widths(config.model.width).items()
    }
    options = {"hidden": config.model.hidden} if kind is NeuMF else {}
    return cast(nn.Module, kind(**tables, **options))


def initialise(model: nn.Module, config: RunConfig, train: Interactions) -> None:
    """Give a model the parameters that training starts from, drawn with the run's seed.

    Baselines that want to see the training data first do so here.
    """
    tables = tables_of(model)
    for name, table in tables.items():
        if isinstance(table, CompressedEmbedding):
            table.init_scale = config.embedding.init_scale
            table.see(_occurrences(train, name))
    generator = torch.Generator().manual_seed(config.seed)
    constant = build_objective(config).best_constant(torch.from_numpy(train.label.copy()))
    if isinstance(model, NMF):
        if train.label.min() < 0:
            raise DataError(
                f"the smallest label is {train.label.min():g}, but NMF predicts nonnegative "
                "numbers; choose another model"
            )
        model.reset_parameters(generator, mean=constant)
    else:
        cast(Any, model).reset_parameters(generator)
    with torch.no_grad():
        for table in tables.values():
            if not isinstance(table, CompressedEmbedding):
                rows_of(table).mul_(config.embedding.init_scale)[:, 0] += config.embedding.start


def tables_of(model: nn.Module) -> dict[str, nn.Module]:
    """The embedding layers of one of MODELS, by name."""
    return {name: getattr(model, name) for name in cast(Any, model).layer_widths(1)}


def _occurrences(train: Interactions, table_name: str) -> Occurrences:
    """The training data as a table of users or of items sees them."""
    user, item = torch.from_numpy(train.user.copy()), torch.from_numpy(train.item.copy())
    label = torch.from_numpy(train.label.copy())
    if "user" in table_name:
        return Occurrences(user.long(), item.long(), label, train.num_users, train.num_items)
    return Occurrences(item.long(), user.long(), label, train.num_items, train.num_users)


@torch.no_grad()
def with_full_tables(model: nn.Module) -> nn.Module:
    """A copy of one of MODELS whose tables are full ones that hold the vectors of all entities.

    It predicts the same, and a look-up costs no more than copying a row. In evaluation mode.
    """
    with evaluation_mode(model):
        full = {
            id(table): nn.Embedding.from_pretrained(
                table(torch.arange(cast(int, table.num_embeddings)))
            )
            for table in tables_of(model).values()
        }
    return copy.deepcopy(model, memo=full).eval()  # `full` stands for the tables' copies


def table_of_entity(model: nn.Module, entity: str) -> tuple[str, nn.Module]:
    """The first table of "user" or "item", and its name: of NeuMF's four, the one multiplied."""
    return next((name, table) for name, table in tables_of(model).items() if entity in name)


def _build_table(
    config: RunConfig, name: str, num_users: int, num_items: int, width: int
) -> nn.Module:
    embedding = config.embedding
    is_user = "user" in name
    num_entities = num_users if is_user else num_items
    rows = embedding.user_rows if is_user else embedding.item_rows
    if embedding.kind == "full":
        return nn.Embedding(num_entities, width)
    try:
        if embedding.is_clustered:
            assert rows is not None, "the configuration is completed"
            row_dim = width if embedding.row_dim is None else min(width, embedding.row_dim)
            return ClusteredEmbedding(num_entities, width, rows, row_dim=row_dim)
        if config.encoding.bytes_per_entity is None:
            assert isinstance(rows, int), "the configuration is completed"
            num_bytes = rows * width * 4
        else:
            num_bytes = int(config.encoding.bytes_per_entity * num_entities)
        baseline = all_baselines()[embedding.kind]
        table = baseline.within(num_entities, width, num_bytes, seed=config.seed)
        table.start = embedding.start
        return table
    except ArgumentError as error:
        who = "users" if is_user else "items"
        raise ConfigError(f"{embedding.kind} table of {num_entities} {who}: {error}") from error
