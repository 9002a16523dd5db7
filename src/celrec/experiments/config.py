"""RunConfig: everything a run depends on, as frozen dataclasses and as TOML.

Each section of the file is one dataclass, and each checks its own values. Values come from three
places, the later ones winning: `default_values` for the task, model and embedding at hand, a file,
the options of the command line. A run writes the complete result into its folder.

TOML has no null: `false` stands for None, "off" or "let the data decide".
"""

from __future__ import annotations

import copy
import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from celrec.baselines.registry import all_baselines
from celrec.core.cluster_optimizer import ClusterSchedule
from celrec.core.reassign import ReassignRule
from celrec.core.split import GainSplit
from celrec.errors import ArgumentError, ConfigError, check_count, check_number, nearest_name
from celrec.losses import Task
from celrec.training.encoding import EncodingOptions
from celrec.training.trainer import TrainingOptions

ModelKind = Literal["gmf", "biased-mf", "nmf", "neumf"]
PartitionKind = Literal["random", "leave-last-out", "time", "truncated"]
Rows = int | Literal["auto"]

CLUSTERED = ("clustered", "paper-cel")
"""Kinds of tables that are a `ClusteredEmbedding`: ours, and by the rules of Chen et al. 2023."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the interactions come from.

    source : a name of the catalog, or a file
    user, item, label, time, title, separator, columns : as `read_interactions` takes them; not
        used for the catalog
    """

    source: str
    user: str = "user"
    item: str = "item"
    label: str | None = "rating"
    time: str | None = None
    title: str | None = None
    separator: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is predicted.

    kind : "rating" for numbers, "binary" for yes or no
    positive_from : smallest label that is a yes; None lets the data decide (see build.py)
    drop_rating : rows with exactly this label are left out
    negatives : m, for data that hold positives only: m items that the user did not meet for each
    """

    kind: Task
    positive_from: float | None = None
    drop_rating: float | None = None
    negatives: int | None = None

    def __post_init__(self) -> None:
        for name in ("positive_from", "drop_rating"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.negatives is not None:
            check_count("negatives", self.negatives, at_least=1)
        if self.kind == "rating" and (self.positive_from, self.negatives) != (None, None):
            raise ArgumentError(
                "positive_from and negatives make labels of 0 and 1, but the task is rating; "
                "choose the task binary, or leave them out"
            )


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """Which interactions train, which choose, which test (see data/partition.py).

    kind : None lets the data decide: leave-last-out for a binary task with times, else random
    seed : of a random or truncated partition; None takes the run's
    test_share, validation_share : for random and time
    num_test, num_validation : events per user, for leave-last-out
    merge_validation : whether the validation set trains, too: the reported run
    """

    kind: PartitionKind | None = None
    seed: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.1
    num_test: int = 2
    num_validation: int = 1
    merge_validation: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The feature-interaction model.

    width : factors; a table's rows also hold what the model puts beside them (biases)
    hidden : widths of NeuMF's network
    """

    kind: ModelKind
    width: int = 32
    hidden: tuple[int, ...] = (64, 32)

    def __post_init__(self) -> None:
        check_count("width", self.width, at_least=1)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The embedding tables.

    kind : "full", "clustered", "paper-cel" (clustered by the paper's own rules), or the name of a
        baseline
    user_rows, item_rows : rows of each table; None: 64, or as many as there are entities if that is
        fewer. "auto", for clustered: as many as the data pay for. A baseline takes as many bytes
        as so many rows of float32. Where `encoding.bytes_per_entity` is given, it decides in place
        of None
    row_dim : numbers in a row of a clustered table; zeros stand before them. None: as many as in a
        vector, or what `encoding.bytes_per_entity` makes best use of
    init_scale : > 0, multiplies the vectors that the model starts with
    start : added to the first number of all of them, a direction that all tables share
    """

    kind: str
    user_rows: Rows | None = None
    item_rows: Rows | None = None
    row_dim: int | None = None
    init_scale: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        known = ("full", *CLUSTERED, *all_baselines())
        if self.kind not in known:
            raise ArgumentError(f"kind is {self.kind!r}; {nearest_name(self.kind, known)}")
        if self.row_dim is not None:
            check_count("row_dim", self.row_dim, at_least=1)
        check_number("init_scale", self.init_scale, above=0)
        check_number("start", self.start)
        if self.kind == "full" and (self.user_rows, self.item_rows) != (None, None):
            raise ArgumentError(
                "a full table has one row for every entity and takes no number of rows; leave it "
                "out, or choose another embedding, such as clustered or hashed"
            )
        if self.kind != "clustered" and "auto" in (self.user_rows, self.item_rows):
            raise ArgumentError(
                f"a {self.kind} table cannot choose its number of rows; give it one in place of "
                "'auto', or choose the embedding clustered"
            )

    @property
    def is_clustered(self) -> bool:
        return self.kind in CLUSTERED


@dataclass(frozen=True, kw_only=True)
class ClustersConfig:
    """How clusters grow; used by clustered tables only."""

    schedule: ClusterSchedule = field(default_factory=ClusterSchedule)
    split: GainSplit = field(default_factory=GainSplit)
    reassign: ReassignRule = field(default_factory=ReassignRule)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete.

    seed : >= 0, of the start, the order of training and a random partition
    raises : ConfigError from every constructor below, naming the key
    """

    data: DataConfig
    task: TaskConfig
    partition: PartitionConfig
    model: ModelConfig
    embedding: EmbeddingConfig
    clusters: ClustersConfig
    encoding: EncodingOptions
    training: TrainingOptions
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("seed", self.seed)
        is_clustered = self.embedding.is_clustered
        if self.encoding.personal and not is_clustered:
            raise ArgumentError(
                "personal vectors are for clustered tables, but the embedding is "
                f"{self.embedding.kind}; leave them out, or choose the embedding clustered"
            )
        if self.encoding.bytes_per_entity is not None and self.embedding.kind in (
            "full",
            "paper-cel",
        ):
            raise ArgumentError(
                f"bytes_per_entity is given, but a {self.embedding.kind} table has the size that "
                "its rows have; leave it out, or choose another embedding, such as clustered or "
                "quantized"
            )
        if self.embedding.kind == "paper-cel" and self.encoding.is_needed:
            raise ArgumentError("paper-cel has hard codes; set blend to 1, and personal to false")
        if is_clustered and self.encoding.is_personal and self.model.kind == "nmf":
            raise ArgumentError(
                "nmf keeps its rows nonnegative, and personal vectors would leave them; choose "
                "another model, or blends alone (no personal, no bytes_per_entity)"
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RunConfig:
        """Complete a nested mapping, as TOML gives it, with defaults.

        >>> config = RunConfig.from_values({"data": {"source": "ml-100k"}, "seed": 3})
        >>> config.task.kind, config.model.kind, config.embedding.kind, config.seed
        ('rating', 'biased-mf', 'clustered', 3)
        """
        return _dataclass_from(cls, merged(default_values(values), values), where="")

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a TOML file; keys that it lacks take their defaults."""
        return cls.from_values(read_values(path))

    def to_toml(self) -> str:
        """The complete configuration; `from_values` of it is equal to it."""
        return tomli_w.dumps(_values_of(self))


def read_values(path: Path) -> dict[str, Any]:
    """The content of a TOML file as it stands."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of `overrides` winning.

    >>> merged({"model": {"kind": "gmf", "width": 32}}, {"model": {"width": 16}})
    {'model': {'kind': 'gmf', 'width': 16}}
    """
    result = copy.deepcopy(dict(values))
    for key, value in overrides.items():
        inner = result.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            result[key] = merged(inner, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


# --- defaults ------------------------------------------------------------------------------------

_OF_TASK: dict[str, dict[str, Any]] = {
    "binary": {
        "model": {"kind": "gmf", "width": 32},
        "training": {"epochs": 30, "batch_size": 1024, "learning_rate": 3e-3},
        "clusters": {"schedule": {"every": 2}},
    },
    "rating": {
        "model": {"kind": "biased-mf", "width": 16},
        "training": {
            "epochs": 40,
            "batch_size": 1024,
            "optimizer": "adam",
            "learning_rate": 5e-3,
            "weight_decay": 0.0,
        },
    },
}

_GROWTH_SHARE = 0.5  # of the epochs

# A full table overfits without it; the rows of few clusters hardly can. Of ratings, clustered and
# full were chosen on the validation data of MovieLens-100k.
_L2 = {("binary", "full"): 0.01, ("rating", "full"): 0.15}
_L2_OF_OTHERS = {"binary": 0.0, "rating": 0.02}


def default_values(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Good values for what is not chosen, given what is.

    chosen : the task, the embedding and the epochs matter

    >>> default_values({"task": {"kind": "binary"}})["model"]
    {'kind': 'gmf', 'width': 32}
    """
    task = _chosen(chosen, "task", "kind", "rating")
    if task not in _OF_TASK:
        raise ConfigError(f"task.kind is {task!r}; {nearest_name(str(task), _OF_TASK)}")
    embedding = _chosen(chosen, "embedding", "kind", "clustered")
    values = merged({"task": {"kind": task}, "embedding": {"kind": "clustered"}}, _OF_TASK[task])
    values = merged(
        values, {"training": {"l2": _L2.get((str(task), str(embedding)), _L2_OF_OTHERS[task])}}
    )
    if embedding == "paper-cel":
        values = merged(values, {"encoding": {"blend": 1}})
    epochs = _chosen(chosen, "training", "epochs", values["training"]["epochs"])
    if isinstance(epochs, int):  # anything else is refused later, by name
        every = values.get("clusters", {}).get("schedule", {}).get("every", 1)
        every = min(every, max(1, epochs // 4))  # in a short run no round is left out
        settle = min(2, epochs // 4)
        growth = min(round(_GROWTH_SHARE * epochs / every), (epochs - settle) // every)
        schedule = {"every": every, "growth_rounds": max(1, growth), "settle_epochs": settle}
        values = merged(values, {"clusters": {"schedule": schedule}})
    return values


def _chosen(values: Mapping[str, Any], section: str, key: str, default: Any) -> Any:
    inner = values.get(section)
    return inner.get(key, default) if isinstance(inner, Mapping) else default


# --- dataclasses and plain values ----------------------------------------------------------------


def _values_of(config: Any) -> dict[str, Any]:
    """Nested plain values, None as False; every field is there."""
    values: dict[str, Any] = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if dataclasses.is_dataclass(value):
            value = _values_of(value)
        elif isinstance(value, tuple):
            value = list(value)
        values[option.name] = False if value is None else value
    # TOML wants plain values before sections.
    return dict(sorted(values.items(), key=lambda pair: isinstance(pair[1], dict)))


def _dataclass_from(kind: type[T], values: object, where: str) -> T:
    """where : the dotted path of sections, "" at the top"""
    place = f"[{where}]" if where else "the configuration"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}; wanted a section {place} of keys and values")
    hints = typing.get_type_hints(kind)
    options = {option.name: option for option in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in options:
            raise ConfigError(f"{place} has no key {key!r}; {nearest_name(key, options)}")
    arguments = {}
    for name, option in options.items():
        path = f"{where}.{name}" if where else name
        if name in values:
            arguments[name] = _value_from(hints[name], values[name], path)
        elif dataclasses.is_dataclass(hints[name]):
            arguments[name] = _dataclass_from(hints[name], {}, path)
        elif option.default is dataclasses.MISSING:
            raise ConfigError(f"{place} lacks the key {name!r}; give it")
    try:
        return kind(**arguments)
    except ArgumentError as error:
        raise ConfigError(f"{place}: {error}") from error


def _value_from(hint: Any, value: object, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_from(hint, value, path)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not types.NoneType]
        if value is False and len(inner) < len(typing.get_args(hint)):
            return None
        if len(inner) == 1:
            return _value_from(inner[0], value, path)
        if type(value) is int and int in inner:
            return value
        words = [word for part in inner for word in typing.get_args(part)]
        if value not in words:
            wanted = " or ".join(repr(word) for word in words)
            raise ConfigError(f"{path} is {value!r}; wanted an integer or {wanted}")
        return value
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{path} is {value!r}; {nearest_name(str(value), choices)}")
        return value
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; wanted a list")
        return tuple(_value_from(inner, part, path) for part in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)  # type: ignore[arg-type]
    if type(value) is not hint:
        wanted = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[hint]
        raise ConfigError(f"{path} is {value!r}; wanted {wanted}")
    return value
