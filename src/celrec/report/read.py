"""Run folders, read for a person to look at: runs, their repetitions, the lines of the table.

Only the small files of a run folder are read (see experiments/run.py for who writes them); torch
and checkpoints are not needed. `config.toml` makes a folder a run. Any other file may be missing:
what it would have shown is then left out of the page. A damaged file is an error.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl

from celrec.errors import ArgumentError, CheckpointError, DataError
from celrec.history import read_history

FIGURE = {"binary": "auc", "rating": "mse"}
"""The test figure that the page is about, by task."""

KINDS = ("clustered", "blended", "personal", "hashed", "full")
"""What tables are called, in the order of the page; the first three by the codes of clusters."""

OURS = KINDS[:3]

_ENTITY_COLUMNS = {"raw_id", "title", "cluster", "train_count", "x", "y"}
_SEEDS = {("seed",), ("partition", "seed")}


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    config : config.toml            facts : run.json, {} if missing
    history : lines of history.jsonl
    metrics : metrics.json, None while the run is not finished
    users, items : a line per entity, None if missing
    """

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    users: pl.DataFrame | None
    items: pl.DataFrame | None

    @property
    def task(self) -> str:
        return self.config["task"]["kind"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def kept_epoch(self) -> int:
        """The epoch whose model the run ended with: the best on validation, else the last.

        returns : counted from 1; 0 without a history
        """
        if not self.history:
            return 0
        if self.history[-1].get("validation") is None:
            return self.history[-1]["epoch"]
        sign = 1 if self.task == "binary" else -1
        best = max(self.history, key=lambda line: sign * line["validation"][FIGURE[self.task]])
        return best["epoch"]

    def code(self, entity: str) -> tuple[int, int] | None:
        """How many clusters a code of "user" or "item" mixes, and how many have a vector of own.

        returns : of the first table, where a model has several; None where that is not known
        """
        codes = (self.metrics or {}).get("codes", {})
        found = next((code for name, code in codes.items() if entity in name), None)
        return None if found is None else (found["blend"], found["personal"])

    def table_of(self, entity: str) -> str | None:
        """The clustered table of "user" or "item"; the first, where a model has several."""
        tables = self.history[0].get("clusters", {}) if self.history else {}
        return next((name for name in tables if entity in name), None)


@dataclass(frozen=True, eq=False)
class Method:
    """Runs that differ in their seeds only.

    embedding : one of KINDS
    rows : "32", or "47 + 84" for users and items, or "auto"; "" for full tables
    variant : settings that tell it from a method of the same embedding and rows; mostly ""
    runs : by seed
    """

    embedding: str
    rows: str
    variant: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Names the method among those on the page."""
        return method_label(self.embedding, self.rows, self.variant)

    @property
    def num_rows(self) -> int:
        """Rows of all tables, to order methods by; 0 for full tables, and where data choose."""
        return sum(int(part) for part in self.rows.split(" + ") if part.isdigit())

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.metrics is not None)


@dataclass(frozen=True)
class ResultRow:
    """A line of the table: a method, averaged over its seeds.

    rows, variant : as in Method
    mean, std : of AUC or MSE on the test set; std is None for a single seed
    rmse : for ratings
    coldest_users, coldest_items : the same figure on the coldest tenth; None: too few events
    num_seeds : None if not known
    """

    embedding: str
    rows: str
    variant: str
    mean: float
    std: float | None
    rmse: float | None
    coldest_users: float | None
    coldest_items: float | None
    table_bytes: int
    total_bytes: int
    times_smaller: float
    seconds: float | None
    num_seeds: int | None

    @property
    def label(self) -> str:
        """The label of its method."""
        return method_label(self.embedding, self.rows, self.variant)

    @property
    def name(self) -> str:
        """The label without rows."""
        return method_label(self.embedding, "", self.variant)


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Read run folders; one that is named twice is read once.

    raises : CheckpointError for a folder that is no run, or is damaged; DataError if the runs
        cannot be compared: another task or other data; ArgumentError if there is none
    """
    runs = [read_run(folder) for folder in {Path(f).resolve(): Path(f) for f in folders}.values()]
    if not runs:
        raise ArgumentError("no run folders are given; wanted at least one")
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    return runs


def read_run(folder: Path) -> Run:
    """Read one run folder.

    raises : CheckpointError if it is no run, or a file in it is damaged
    """
    config_file = folder / "config.toml"
    if not config_file.is_file():
        raise CheckpointError(
            f"{folder} is no run: it has no config.toml; wanted a folder that `celrec train` has "
            "made"
        )
    try:
        config = tomllib.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file} is damaged: {error}") from error
    _check_config(config, config_file)
    metrics_file = folder / "metrics.json"
    metrics = _read_json(metrics_file) if metrics_file.exists() else None
    if metrics is not None:
        _check_metrics(metrics, config["task"]["kind"], metrics_file)
    facts_file = folder / "run.json"
    return Run(
        folder=folder,
        config=config,
        facts=_read_json(facts_file) if facts_file.exists() else {},
        history=read_history(folder / "history.jsonl"),
        metrics=metrics,
        users=_read_entities(folder / "users.parquet"),
        items=_read_entities(folder / "items.parquet"),
    )


def group_runs(runs: Sequence[Run]) -> list[Method]:
    """Put runs together that differ in their seeds only.

    returns : in the order of KINDS, and then by rows
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in flat_config(run.config).items() if k not in _SEEDS}
        groups.setdefault(repr(sorted(settings.items())), []).append(run)
    methods = [
        Method(
            embedding=_kind_of(group[0].config),
            rows=_rows_of(group[0].config),
            variant="",
            runs=tuple(sorted(group, key=lambda run: run.seed)),
        )
        for group in groups.values()
    ]
    methods = [replace(method, variant=_variant(method, methods)) for method in methods]
    return sorted(methods, key=lambda m: (KINDS.index(m.embedding), m.num_rows))


def result_rows(
    methods: Sequence[Method], demo_rows: Sequence[Mapping[str, Any]] | None = None
) -> list[ResultRow]:
    """The lines of the table.

    demo_rows : lines that are known already, with the keys of demo.json; they come first, and a
        method that they name (by embedding and rows) is not summarised again
    raises : DataError naming a key that a demo row lacks
    """
    rows = [_row_of_demo(row, methods) for row in demo_rows or ()]
    known = {row.label for row in rows}
    rows += [_row_of_method(m) for m in methods if m.finished and m.label not in known]
    return rows


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None for one value.

    >>> mean_and_std([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return fmean(values), stdev(values) if len(values) > 1 else None


def flat_config(config: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Values by their path of sections.

    >>> flat_config({"seed": 1, "model": {"kind": "gmf"}})
    {('seed',): 1, ('model', 'kind'): 'gmf'}
    """
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {(key, *path): inner for path, inner in flat_config(value).items()}
        else:
            flat[(key,)] = value
    return flat


# --- lines of the table --------------------------------------------------------------------------


def _row_of_method(method: Method) -> ResultRow:
    metrics = [run.metrics for run in method.finished if run.metrics is not None]
    figure = FIGURE[method.runs[0].task]
    mean, std = mean_and_std([m[figure] for m in metrics])
    memory = [m["memory"] for m in metrics]
    seconds = [m["seconds"] for m in metrics if m.get("seconds") is not None]
    return ResultRow(
        embedding=method.embedding,
        rows=method.rows,
        variant=method.variant,
        mean=mean,
        std=std,
        rmse=fmean([m["rmse"] for m in metrics]) if figure == "mse" else None,
        coldest_users=_mean_on_slice(metrics, "coldest_users", figure),
        coldest_items=_mean_on_slice(metrics, "coldest_items", figure),
        table_bytes=round(fmean([m["table_bytes"] for m in memory])),
        total_bytes=round(fmean([m["total_bytes"] for m in memory])),
        times_smaller=fmean([m["times_smaller"] for m in memory]),
        seconds=fmean(seconds) if seconds else None,
        num_seeds=len(metrics),
    )


def _row_of_demo(row: Mapping[str, Any], methods: Sequence[Method]) -> ResultRow:
    try:
        embedding = str(row["embedding"])
        rows = "" if row["rows_per_table"] is None else str(row["rows_per_table"])
        method = next((m for m in methods if (m.embedding, m.rows) == (embedding, rows)), None)
        return ResultRow(
            embedding=embedding,
            rows=rows,
            variant=method.variant if method else "",
            mean=row["auc_mean"],
            std=row["auc_std"],
            rmse=None,
            coldest_users=_number_or_none(row["auc_coldest_users"]),
            coldest_items=_number_or_none(row["auc_coldest_items"]),
            table_bytes=row["table_bytes"],
            total_bytes=row["total_bytes"],
            times_smaller=row["times_smaller"],
            seconds=row["seconds"],
            num_seeds=len(method.finished) if method else None,
        )
    except KeyError as error:
        raise DataError(
            f"a demo row has no key {error}; it has {', '.join(map(str, row))}. Write the rows "
            "anew with `celrec demo`"
        ) from error


def _mean_on_slice(metrics: Sequence[Mapping[str, Any]], name: str, figure: str) -> float | None:
    values = [m.get(name, {}).get(figure) for m in metrics]
    return None if None in values else fmean(values)


def _number_or_none(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


# --- names of methods ----------------------------------------------------------------------------


def method_label(embedding: str, rows: str, variant: str = "") -> str:
    """What a method is called.

    >>> method_label("clustered", "32"), method_label("full", "", "l2 0.1")
    ('clustered, 32 rows', 'full tables, l2 0.1')
    """
    name = "full tables" if embedding == "full" else embedding
    return ", ".join(part for part in (name, f"{rows} rows" if rows else "", variant) if part)


def _kind_of(config: Mapping[str, Any]) -> str:
    """What the tables are called; clustered ones by their codes (see `run.code_name`)."""
    kind: str = config["embedding"]["kind"]
    encoding = config.get("encoding", {})
    if kind != "clustered":
        return kind
    if encoding.get("personal") or encoding.get("bytes_per_entity"):
        return "personal"
    return "blended" if encoding.get("blend", 1) > 1 else kind


def _rows_of(config: Mapping[str, Any]) -> str:
    embedding = config["embedding"]
    counts = (embedding.get("user_rows"), embedding.get("item_rows"))
    return " + ".join(dict.fromkeys(str(count) for count in counts if count))


def _variant(method: Method, methods: Sequence[Method]) -> str:
    """The settings in which methods of the same name differ."""
    namesakes = [flat_config(m.runs[0].config) for m in methods if m.label == method.label]
    own = flat_config(method.runs[0].config)
    return ", ".join(
        f"{path[-1]} {own.get(path)}"
        for path in sorted(set().union(*namesakes) - _SEEDS)
        if len({repr(other.get(path)) for other in namesakes}) > 1
    )


# --- files ---------------------------------------------------------------------------------------


def _check_comparable(run: Run, other: Run) -> None:
    tasks = (run.task, other.task)
    data = [r.facts.get("data", {}).get("fingerprint") for r in (run, other)]
    if tasks[0] != tasks[1]:
        difference = f"the task of one is {tasks[0]}, of the other {tasks[1]}"
    elif None not in data and data[0] != data[1]:
        difference = f"the data of one have fingerprint {data[0][:12]}, of the other {data[1][:12]}"
    else:
        return
    raise DataError(
        f"{run.folder} and {other.folder} cannot be compared: {difference}; write a page for each"
    )


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    for path in (("seed",), ("task", "kind"), ("model", "kind"), ("embedding", "kind")):
        if path not in flat_config(config):
            raise CheckpointError(
                f"{file} has no key {'.'.join(path)}; wanted the complete configuration that "
                "`celrec train` writes"
            )
    if config["task"]["kind"] not in FIGURE:
        raise CheckpointError(
            f"{file} says task {config['task']['kind']!r}; wanted one of {', '.join(FIGURE)}"
        )


def _check_metrics(metrics: Mapping[str, Any], task: str, file: Path) -> None:
    numbers = {(FIGURE[task],), ("memory", "table_bytes"), ("memory", "total_bytes")}
    numbers |= {("memory", "times_smaller")} | ({("rmse",)} if task == "rating" else set())
    flat = flat_config(metrics)
    for path in sorted(numbers):
        if not isinstance(flat.get(path), int | float):
            raise CheckpointError(
                f"{file} has no number {'.'.join(path)}; finish or repeat the run, or compute its "
                "figures anew"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: wanted a JSON object")
    return content


def _read_entities(path: Path) -> pl.DataFrame | None:
    if not path.exists():
        return None
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    missing = _ENTITY_COLUMNS - set(frame.columns)
    if missing:
        raise CheckpointError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(frame.columns)}"
        )
    return frame
