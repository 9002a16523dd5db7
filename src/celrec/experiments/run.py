"""A run: from a configuration to a folder that says everything about it, and back.

Beside what the trainer keeps (see training/trainer.py), a run folder holds

- `config.toml`: the complete configuration; its presence makes a folder a run
- `run.json`: data fingerprint, counts, versions, hardware, threads, command
- `metrics.json`: figures on the test set, bytes, seconds; its presence says that the run is done
- `users.parquet`, `items.parquet`: a line per entity, see `entity_frame`
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from celrec.core.embedding import ClusteredEmbedding
from celrec.core.memory import memory_report
from celrec.core.reassign import ReassignRule
from celrec.core.recording import SampleLoss
from celrec.core.split import PaperSplit
from celrec.core.statistics import collect_statistics
from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.errors import CheckpointError, ConfigError
from celrec.experiments.build import (
    Parts,
    build_model,
    build_objective,
    completed,
    divide,
    initialise,
    load_interactions,
    table_of_entity,
    tables_of,
    with_full_tables,
)
from celrec.experiments.config import RunConfig
from celrec.experiments.peers import FittedPeer
from celrec.history import read_history
from celrec.training.evaluation import evaluate_model, predict
from celrec.training.progress import Progress
from celrec.training.ranking import Ranking, rank_items
from celrec.training.trainer import Trainer, load_trained

RUN_FILES = (
    "config.toml",
    "run.json",
    "history.jsonl",
    "timing.jsonl",
    "last.safetensors",
    "best.safetensors",
    "encoded.safetensors",
    "users.parquet",
    "items.parquet",
    "metrics.json",
)
_PAPER_REASSIGN = ReassignRule(num_proposals=None, prior_weight=0.0)
"""Every entity goes where its own loss is least (Chen et al. 2023, section 3.3)."""

_PACKAGES = ("celrec", "torch", "numpy", "safetensors", "polars", "scikit-learn")


def train_run(
    config: RunConfig,
    run_dir: Path,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a model and fill a run folder.

    command : kept for the record
    overwrite : whether a run that is there already is thrown away
    device : that trains, such as "cuda"; see `check_device`
    returns : the content of metrics.json
    raises : ConfigError if the folder holds something; any error of data, model and training
    """
    check_device(device)
    interactions = load_interactions(config, progress=progress is not None)
    config = completed(config, interactions)
    parts = divide(config, interactions)
    model = build_model(config, interactions.num_users, interactions.num_items)
    _prepare(run_dir, overwrite)
    facts = _facts(config, interactions, parts, command, device)
    write_text(run_dir / "run.json", json.dumps(facts, indent=2))
    write_text(run_dir / "config.toml", config.to_toml())
    return _train(config, parts, model, run_dir, progress, device)


def resume_run(run_dir: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Finish a run that was stopped, on the device and with as many threads as it began with.

    returns : the content of metrics.json; at once if the run was finished already
    raises : CheckpointError if there is no run, or if its data have changed; ConfigError if the
        device is not there
    """
    run = SavedRun.open(run_dir)
    if run.metrics is not None:
        return run.metrics
    hardware = run.facts["hardware"]
    device = check_device(hardware["device"])
    interactions, parts = run.data(progress=progress is not None)
    model = build_model(run.config, interactions.num_users, interactions.num_items)
    torch.set_num_threads(hardware["threads"])
    return _train(run.config, parts, model, run_dir, progress, device)


def evaluate_run(run_dir: Path, *, source: str | None = None) -> dict[str, Any]:
    """Compute the test figures of a run anew, from its checkpoint and its data.

    source : the data file, if it has moved
    returns : as metrics.json, without seconds
    raises : CheckpointError if there is no run, or if its data have changed
    """
    run = SavedRun.open(run_dir)
    _, parts = run.data(source=source)
    return _figures(run.config, run.model(), parts)


@dataclass(frozen=True)
class SavedRun:
    """A run folder, read.

    facts : run.json        metrics : metrics.json, None while the run is not finished
    """

    folder: Path
    config: RunConfig
    facts: dict[str, Any]
    metrics: dict[str, Any] | None

    @classmethod
    def open(cls, run_dir: Path) -> SavedRun:
        """Read the small files of a run folder.

        raises : CheckpointError if it is no run folder, or damaged
        """
        if not (run_dir / "config.toml").is_file():
            raise CheckpointError(
                f"{run_dir} is no run: it has no config.toml; wanted a folder that "
                "`celrec train --out` has made"
            )
        config = RunConfig.read(run_dir / "config.toml")
        facts = _read_json(run_dir / "run.json")
        metrics_file = run_dir / "metrics.json"
        metrics = _read_json(metrics_file) if metrics_file.exists() else None
        return cls(run_dir, config, facts, metrics)

    @property
    def label(self) -> str:
        """What the run is, in a few words; equal for runs that differ in seeds only."""
        embedding, rows = self.config.embedding, ""
        if embedding.kind != "full":
            counts = dict.fromkeys((embedding.user_rows, embedding.item_rows))
            rows = f" {'+'.join(map(str, counts))} rows"
        codes = code_name(self.config)
        return f"{self.facts['data']['name']} {self.config.model.kind} {codes}{rows}"

    def group(self) -> str:
        """The configuration without its seeds: equal for repetitions of one experiment."""
        partition = dataclasses.replace(self.config.partition, seed=None)
        return dataclasses.replace(self.config, partition=partition, seed=0).to_toml()

    def data(
        self, *, source: str | None = None, progress: bool = False
    ) -> tuple[Interactions, Parts]:
        """The data of the run, all and divided.

        raises : CheckpointError if they are not what the run was trained on
        """
        config = self.config
        if source is not None:
            config = dataclasses.replace(
                config, data=dataclasses.replace(config.data, source=source)
            )
        interactions = load_interactions(config, progress=progress)
        found, wanted = interactions.fingerprint(), self.facts["data"]["fingerprint"]
        if found != wanted:
            raise CheckpointError(
                f"the data of {self.folder} have changed since it was trained: "
                f"{config.data.source} has fingerprint {found[:12]}, wanted {wanted[:12]}; name a "
                "file with the same content (--data), or train anew"
            )
        return interactions, divide(config, interactions)

    def model(self) -> nn.Module:
        """The trained model; needs no data.

        raises : CheckpointError if there is no checkpoint, or one of another model
        """
        counts = self.facts["data"]
        model = build_model(self.config, counts["num_users"], counts["num_items"])
        load_trained(model, self.folder)
        return model.eval()


def code_name(config: RunConfig) -> str:
    """What a run's tables are called: "full", "hashed", or by their codes: "clustered", "blended",
    "personal".
    """
    encoding = config.encoding
    if config.embedding.kind != "clustered" or not encoding.is_needed:
        return config.embedding.kind
    return "personal" if encoding.is_personal else "blended"


def new_run_dir(config: RunConfig, parent: Path = Path("runs")) -> Path:
    """A folder that does not exist yet, named after what the run is."""
    name = f"{Path(config.data.source).stem}-{config.model.kind}-{config.embedding.kind}"
    name = f"{name}-seed{config.seed}"
    numbered = (parent / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


# --- training ------------------------------------------------------------------------------------


def check_device(name: str) -> str:
    """Give the name back if this PyTorch can train there.

    name : "cpu", or as `torch.device` takes it: "cuda", "cuda:1"
    raises : ConfigError

    >>> check_device("cpu")
    'cpu'
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise ConfigError(
            f"device is {name!r}, which this PyTorch cannot use "
            f"({str(error).splitlines()[0]}); wanted one of {', '.join(there)}"
        ) from error
    return name


def device_name(device: str) -> str:
    """What a device is: the name of a GPU, or "cpu"."""
    is_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if is_gpu else device


def make_trainer(
    config: RunConfig,
    model: nn.Module,
    *,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Trainer:
    """The trainer that a configuration asks for."""
    is_papers = config.embedding.kind == "paper-cel"
    return Trainer(
        model,
        build_objective(config),
        config.training,
        clusters=config.clusters.schedule,
        split_rule=PaperSplit() if is_papers else config.clusters.split,
        reassign_rule=_PAPER_REASSIGN if is_papers else config.clusters.reassign,
        encoding=config.encoding,
        seed=config.seed,
        run_dir=run_dir,
        progress=progress,
        device=device,
    )


def _train(
    config: RunConfig,
    parts: Parts,
    model: nn.Module,
    run_dir: Path,
    progress: Progress | None,
    device: str,
) -> dict[str, Any]:
    initialise(model, config, parts.train)
    trainer = make_trainer(config, model, run_dir=run_dir, progress=progress, device=device)
    result = trainer.fit(parts.train, parts.validation)
    model.cpu()
    metrics = _figures(config, model, parts)
    for entity in ("user", "item"):
        frame = entity_frame(config, model, parts.train, entity)
        write_whole(run_dir / f"{entity}s.parquet", frame.write_parquet)
    seconds = sum(
        value
        for line in read_history(run_dir / "timing.jsonl")
        for name, value in line.items()
        if name.endswith("_seconds")
    )
    if result.encoding is not None:
        seconds += result.encoding["seconds"]
    metrics["seconds"] = seconds
    write_text(run_dir / "metrics.json", json.dumps(metrics, indent=2))
    return metrics


def _figures(config: RunConfig, model: nn.Module, parts: Parts) -> dict[str, Any]:
    figures = evaluate_model(model, parts.test, task=config.task.kind, train=parts.train)
    ranking = rank_test(config, model, parts)
    if ranking is not None:
        figures |= ranking.means()
    codes = {
        name: {
            "blend": table.blend_size,
            "personal": table.num_personal,
            "levels": table.num_levels,
        }
        for name, table in tables_of(model).items()
        if isinstance(table, ClusteredEmbedding)
    }
    return figures | {"memory": memory_report(model).as_dict(), "codes": codes}


def rank_test(config: RunConfig, model: nn.Module, parts: Parts) -> Ranking | None:
    """All items ranked for test users; None where the data hold negatives."""
    if config.task.negatives is None:
        return None
    ready = model if isinstance(model, FittedPeer) else with_full_tables(model)
    return rank_items(ready, parts.train, parts.test, seed=config.seed)


# --- entities ------------------------------------------------------------------------------------


def entity_frame(
    config: RunConfig, model: nn.Module, train: Interactions, entity: str
) -> pl.DataFrame:
    """One line per user or item: where it stands after training.

    entity : "user" or "item"
    returns : in the order of dense ids
        raw_id, title (null where unknown)
        cluster : null without clusters
        train_count : interactions in the training data
        x, y : its vector on the two main axes; for clustered tables without personal vectors plus
            the entity's own Newton step -g/(h + damping), so that members of a cluster differ
        step : length of that step: how far its own data would take its vector; null without
            clusters
    """
    vocabulary: Vocabulary = getattr(train, f"{entity}s")
    titles = train.item_titles if entity == "item" else None
    count = train.user_counts() if entity == "user" else train.item_counts()
    name, table = table_of_entity(model, entity)
    cluster = step_length = None
    with torch.no_grad():
        vectors = table(torch.arange(len(vocabulary)))
    if isinstance(table, ClusteredEmbedding):
        cluster = table.cluster_ids().numpy()
        step = _newton_steps(config, model, name, table, train)
        if table.num_personal == 0:
            vectors = vectors + step
        step_length = step.norm(dim=1).numpy()
    x, y = _two_main_axes(vectors.double().numpy())
    return vocabulary.to_frame().with_columns(
        pl.Series("title", titles, dtype=pl.String)
        if titles
        else pl.lit(None, pl.String).alias("title"),
        pl.Series("cluster", cluster, dtype=pl.Int32)
        if cluster is not None
        else pl.lit(None, pl.Int32).alias("cluster"),
        pl.Series("train_count", count, dtype=pl.Int64),
        pl.Series("x", x, dtype=pl.Float32),
        pl.Series("y", y, dtype=pl.Float32),
        pl.Series("step", step_length, dtype=pl.Float32)
        if step_length is not None
        else pl.lit(None, pl.Float32).alias("step"),
    )


def _newton_steps(
    config: RunConfig,
    model: nn.Module,
    table_name: str,
    table: ClusteredEmbedding,
    train: Interactions,
) -> Tensor:
    """-g/(h + damping) of every entity, (N, D); zero for one without training data."""
    objective = build_objective(config)
    label = torch.tensor(train.label)
    if objective.needs_calibration:
        objective.calibrate(predict(model, train), label)
    size = config.training.round_batch_size
    columns = (torch.tensor(train.user), torch.tensor(train.item), label)
    batches = list(zip(*(column.split(size) for column in columns), strict=True))
    loss = SampleLoss(lambda batch: objective.nats(model(batch[0], batch[1]), batch[2]), batches)
    loss.look_at(table_name, None)
    model.eval()
    found = collect_statistics(table, loss).statistics
    steps = torch.zeros(table.num_embeddings, table.row_dim, dtype=found.gradient.dtype)
    damping = config.clusters.split.damping
    steps[found.entities] = -found.gradient / (found.curvature + damping)
    return steps


def _two_main_axes(vectors: np.ndarray) -> np.ndarray:
    """The coordinates of vectors, (N, D), on their main axes, (2, N).

    An axis points to the side where its longest coordinate is.
    """
    num_axes = min(2, *vectors.shape)
    axes = PCA(n_components=num_axes, svd_solver="full").fit_transform(vectors)  # (N, 2)
    longest = np.abs(axes).argmax(0)
    axes = axes * np.sign(axes[longest, range(num_axes)] + 0.0)
    return np.pad(axes, ((0, 0), (0, 2 - num_axes))).T


# --- files ---------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all.

    write : given the place of a file that then takes the place of `path`
    raises : CheckpointError
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}; free some space or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: wanted a JSON object")
    return content


def _prepare(run_dir: Path, overwrite: bool) -> None:
    """Make an empty run folder; only files that a run writes are ever removed."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        found = {path.name.removesuffix(".partial") for path in run_dir.iterdir()}
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be a run folder: {error}") from error
    foreign = sorted(found - set(RUN_FILES))
    if foreign:
        raise ConfigError(
            f"{run_dir} holds other things ({', '.join(foreign[:3])}); choose a folder that is "
            "new, empty, or holds a run"
        )
    if "config.toml" in found and not overwrite:
        raise ConfigError(
            f"{run_dir} already holds a run; go on with it (--resume {run_dir}), replace it "
            "(--overwrite), or choose another folder"
        )
    for name in RUN_FILES:  # config.toml first: without it the folder is no run
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / f"{name}.partial").unlink(missing_ok=True)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, and of installed packages."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _facts(
    config: RunConfig,
    interactions: Interactions,
    parts: Parts,
    command: Sequence[str],
    device: str,
) -> dict[str, Any]:
    return {
        "command": list(command),
        "seed": config.seed,
        "data": {
            "name": interactions.name,
            "fingerprint": interactions.fingerprint(),
            "num_interactions": len(interactions),
            "num_users": interactions.num_users,
            "num_items": interactions.num_items,
        },
        "partition": {
            "name": parts.partition.name,
            "train": len(parts.train),
            "validation": 0 if parts.validation is None else len(parts.validation),
            "test": len(parts.test),
        },
        "versions": versions(_PACKAGES),
        "hardware": {
            "platform": platform.platform(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
            "accelerator": device_name(device),
        },
    }
