"""A suite: methods at equal bytes on one data set, every choice made on validation data.

A suite is a TOML file (`SuiteConfig`). Running it takes two steps, each a set of jobs whose results
are kept, so that a suite that is stopped goes on, and one that fails half-way says what failed:

1. *Tuning.* Every method gets the same number of trials on validation data, at one budget: the
   first with default settings, the others proposed by optuna. The best is used at all budgets.
2. *Final runs.* For every budget and seed the method is trained on all but the test data, for the
   epochs that its best trial found, and scored once.

A budget is a share of the bytes of full float32 tables, and covers all that serving needs (total
bytes: rows, codes, personal vectors). `trials.parquet` has a line for every trial and every final
run; `predictions/` has what each predicts for the test events, for paired comparisons, and, where
data hold positives only, how well it ranks all items for each of a sample of users; `suite.toml` is
the suite itself.

Full tables and peers (peers.py) have no budget: they are as large as they are, and run once a seed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import polars as pl
import tomli_w
from torch import nn

from celrec.core.memory import MemoryReport, memory_report
from celrec.data.catalog import CATALOG
from celrec.errors import (
    ArgumentError,
    ConfigError,
    MissingExtraError,
    check_count,
    check_number,
    nearest_name,
)
from celrec.experiments.build import (
    Parts,
    build_model,
    completed,
    divide,
    initialise,
    load_interactions,
)
from celrec.experiments.config import CLUSTERED, RunConfig, merged
from celrec.experiments.jobs import Job, Jobs, current_commit
from celrec.experiments.peers import PEERS, fit_peer
from celrec.experiments.run import (
    check_device,
    device_name,
    make_trainer,
    rank_test,
    versions,
    write_text,
    write_whole,
)
from celrec.losses import Task
from celrec.metrics import Metrics, evaluate
from celrec.training.evaluation import counts_in, predict
from celrec.training.ranking import Ranking
from celrec.training.trainer import FIGURE_OF_TASK

FULL = "full"
TRIALS_FILE = "trials.parquet"
SUITE_FILE = "suite.toml"
_PACKAGES = ("celrec", "torch", "numpy", "polars", "scikit-learn", "optuna")

Space = Mapping[str, Mapping[str, Any]]
"""Dotted key of a RunConfig, or of a peer ("peer.n_factors") -> {"low", "high"} (logarithmic;
with "int" = true, whole numbers), or {"choices"}."""


def has_budget(method: str) -> bool:
    """Whether a method can be made as small as asked; full tables and peers cannot."""
    return method != FULL and method not in PEERS


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What is compared, on what.

    name : of the suite        hours : it may take, on two cores
    budgets : in (0, 1], shares of the bytes of full tables
    tuning_budget : one of them, at which settings are chosen
    trials : >= 1, of tuning, for each method
    seeds : of the final runs; where the partition is random it changes with them
    methods : kinds of embeddings, as `--embedding` takes them, and peers; "full" and peers once,
        at no budget
    common : values of a RunConfig, for all
    search : what is tuned, for all methods but peers
    settings, searches : by method, what differs; a peer's own settings are in its table "peer"
    """

    name: str
    hours: float = field(repr=False)  # not in fingerprints: results do not depend on it
    budgets: tuple[float, ...]
    tuning_budget: float
    trials: int
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    common: Mapping[str, Any]
    search: Space
    settings: Mapping[str, Mapping[str, Any]]
    searches: Mapping[str, Space]

    def __post_init__(self) -> None:
        check_number("hours", self.hours, above=0)
        for budget in self.budgets:
            check_number("budgets", budget, above=0, at_most=1)
        if self.tuning_budget not in self.budgets:
            raise ArgumentError(
                f"tuning_budget is {self.tuning_budget:g}; wanted one of budgets: "
                f"{', '.join(f'{budget:g}' for budget in self.budgets)}"
            )
        check_count("trials", self.trials, at_least=1)
        if not self.seeds:
            raise ArgumentError("seeds is empty; wanted at least one")
        for method in (*self.settings, *self.searches):
            if method not in self.methods:
                raise ArgumentError(
                    f"[method.{method}] is given, but methods has no {method!r}; "
                    f"{nearest_name(method, self.methods)}"
                )

    @classmethod
    def read(cls, path: Path) -> SuiteConfig:
        """Read a TOML file; see benchmarks/quality for examples.

        raises : ConfigError
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
        methods = values.pop("method", {})
        known = {option.name for option in dataclasses.fields(cls)} - {"settings", "searches"}
        for key in values:
            if key not in known:
                raise ConfigError(f"{path} has no key {key!r}; {nearest_name(key, known)}")
        missing = sorted(known - values.keys() - {"search"})
        if missing:
            raise ConfigError(f"{path} lacks {', '.join(missing)}; give them")
        try:
            config = cls(
                search=_checked_space(values.pop("search", {})),
                settings={
                    name: {key: value for key, value in one.items() if key != "search"}
                    for name, one in methods.items()
                },
                searches={
                    name: _checked_space(one["search"])
                    for name, one in methods.items()
                    if "search" in one
                },
                **cast(
                    Any,
                    {
                        key: tuple(value) if isinstance(value, list) else value
                        for key, value in values.items()
                    },
                ),
            )
            for method in config.methods:
                config.run_values(method, {}, 0, is_final=False)
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return config

    def with_data_in(self, folder: Path) -> SuiteConfig:
        """The same suite, its data file found in a folder; a data set of the catalog needs none.

        raises : ConfigError if the file is not there
        """
        source = str(self.common["data"]["source"])
        if source in CATALOG:
            return self
        file = folder / source
        if not file.is_file():
            raise ConfigError(
                f"the data of the suite {self.name!r}, {source}, are not in {folder.resolve()}; "
                "name the folder that has them with --data"
            )
        found = {"data": {"source": str(file.resolve())}}
        return dataclasses.replace(self, common=merged(self.common, found))

    def of_method(self, method: str) -> SuiteConfig:
        """The suite without the other methods: what the runs of this one depend on."""
        return dataclasses.replace(
            self,
            methods=(method,),
            settings={name: one for name, one in self.settings.items() if name == method},
            searches={name: one for name, one in self.searches.items() if name == method},
        )

    def to_toml(self) -> str:
        """The complete suite; `read` of it is equal to it."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        settings, searches = values.pop("settings"), values.pop("searches")
        methods = merged(settings, {name: {"search": space} for name, space in searches.items()})
        return tomli_w.dumps(values | {"method": methods})

    @property
    def task(self) -> Task:
        return RunConfig.from_values(self.common).task.kind

    @property
    def metric(self) -> str:
        """The figure that chooses, and that results are about: "auc" or "mse"."""
        return FIGURE_OF_TASK[self.task][0]

    def space_of(self, method: str) -> Space:
        """What is tuned of a method. A search of its own replaces the common one, which says
        nothing to peers.
        """
        return self.searches.get(method, {} if method in PEERS else self.search)

    def run_values(
        self, method: str, chosen: Mapping[str, Any], seed: int, *, is_final: bool
    ) -> dict[str, Any]:
        """The values of a run's configuration, without its size; checked. A peer's settings are
        among them, as "peer".

        chosen : dotted keys to values, from tuning
        """
        values = merged(self.common, {"embedding": {"kind": method}, "seed": seed})
        values = merged(values, self.settings.get(method, {}))
        for key, value in chosen.items():
            values = merged(values, _nested(key, value))
        values = merged(values, {"partition": {"merge_validation": is_final}})
        config_of(values)
        return values


def config_of(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that `run_values` gives; of a peer, that of full tables on its data.

    raises : ConfigError; ArgumentError for a peer of another task
    """
    method = values["embedding"]["kind"]
    if method not in PEERS:
        return RunConfig.from_values(values)
    ours = {key: value for key, value in values.items() if key != "peer"}
    config = RunConfig.from_values(merged(ours, {"embedding": {"kind": FULL}}))
    PEERS[method].check_task(config.task)
    return config


def _checked_space(space: Space) -> Space:
    for key, one in space.items():
        is_range = set(one) - {"int"} == {"low", "high"} and isinstance(one.get("int", False), bool)
        if not is_range and set(one) != {"choices"}:
            raise ConfigError(
                f"search of {key!r} is {dict(one)}; wanted low and high, or choices; whole "
                "numbers with int = true"
            )
    return space


def _nested(key: str, value: Any) -> dict[str, Any]:
    """
    >>> _nested("training.l2", 0.1)
    {'training': {'l2': 0.1}}
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


# --- one run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    config : as TOML
    figures : of the scored data, with cold slices        epochs : trained, or best on validation;
        None for peers, whose settings say it
    seconds : of reading, training and predicting
    prediction : float32 (n,) of the scored events
    ranking : on test data of positives only, where the means are among the figures, too; else None
    """

    config: str
    figures: Metrics
    memory: dict[str, Any]
    epochs: int | None
    seconds: float
    prediction: np.ndarray
    ranking: Ranking | None
    fingerprint: str


def train_once(values: Mapping[str, Any], budget: float | None, device: str = "cpu") -> Outcome:
    """Train and score: on validation data, or on test data where validation is merged.

    A method that picks its epoch by validation serves the model of that epoch; clusters always
    train to the end, for their schedule needs all epochs.

    budget : share of the full tables' bytes; None for full tables
    device : that trains
    raises : ArgumentError if the method cannot be as small
    """
    began = perf_counter()
    config = config_of(values)
    interactions = load_interactions(config)
    name = values["embedding"]["kind"]
    if budget is not None:
        config = RunConfig.from_values(
            merged(values, _size(config, budget, interactions.num_users, interactions.num_items))
        )
    config = completed(config, interactions)
    parts = divide(config, interactions)
    model: nn.Module
    epochs = None
    if name in PEERS:
        settings = values.get("peer", {})
        model = fit_peer(name, parts.train, settings, config.seed)
        full = _full_tables(config, interactions.num_users, interactions.num_items)
        memory: dict[str, Any] = model.memory() | {"full_table_bytes": full.total_bytes}
        text = _peer_toml(config, name, settings)
    else:
        model = build_model(config, interactions.num_users, interactions.num_items)
        initialise(model, config, parts.train)
        trainer = make_trainer(config, model, device=device)
        is_clustered = config.embedding.kind in CLUSTERED
        result = trainer.fit(parts.train, None if is_clustered else parts.validation)
        model.cpu()
        epochs = result.best_epoch or result.num_epochs
        memory, text = memory_report(model).as_dict(), config.to_toml()
    scored = parts.test if parts.validation is None else parts.validation
    prediction = predict(model, scored)
    user_counts, item_counts = counts_in(parts.train, scored)
    if budget is not None and memory["total_bytes"] > budget * memory["full_table_bytes"]:
        raise AssertionError(f"{name} takes more than its budget of {budget:g}")
    figures = evaluate(
        prediction.double().numpy(),
        scored.label,
        task=config.task.kind,
        user_counts=user_counts,
        item_counts=item_counts,
    )
    seconds = perf_counter() - began
    ranking = rank_test(config, model, parts) if scored is parts.test else None
    return Outcome(
        config=text,
        figures=figures if ranking is None else figures | ranking.means(),
        memory=memory,
        epochs=epochs,
        seconds=seconds,
        prediction=prediction.float().numpy(),
        ranking=ranking,
        fingerprint=interactions.fingerprint(),
    )


def _size(config: RunConfig, budget: float, num_users: int, num_items: int) -> dict[str, Any]:
    """The values that give tables a share of the full ones' bytes."""
    full = _full_tables(config, num_users, num_items)
    num_entities = sum(table.num_entities for table in full.tables)
    num_bytes = budget * full.total_bytes
    if config.embedding.kind == "paper-cel":  # rows, and one byte for each entity
        width_bytes = sum(4 * table.width for table in full.tables)
        rows = min(256, int((num_bytes - num_entities) // width_bytes))
        rows = min(rows, *(table.num_entities for table in full.tables))
        if rows < 2:
            least = num_entities + 2 * width_bytes
            raise ArgumentError(
                f"{num_bytes:.0f} bytes are too few for tables of kind paper-cel, which take at "
                f"least {least}"
            )
        return {"embedding": {"user_rows": rows, "item_rows": rows}}
    return {"encoding": {"bytes_per_entity": num_bytes / num_entities}}


def _full_tables(config: RunConfig, num_users: int, num_items: int) -> MemoryReport:
    """What the full tables of a configuration's model take."""
    model = build_model(
        RunConfig.from_values(
            {"data": {"source": "any"}, "task": {"kind": config.task.kind}}
            | {"model": {"kind": config.model.kind, "width": config.model.width}}
            | {"embedding": {"kind": FULL}}
        ),
        num_users,
        num_items,
    )
    return memory_report(model)


def _peer_toml(config: RunConfig, name: str, settings: Mapping[str, Any]) -> str:
    """What a peer's run depends on."""
    values = tomllib.loads(config.to_toml())
    kept = {key: values[key] for key in ("seed", "data", "task", "partition")}
    return tomli_w.dumps(kept | {"peer": {"name": name, **settings}})


def tune(
    suite: SuiteConfig, method: str, folder: Path, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Make the trials of a method, one after the other; those that are in the folder are kept.

    A method that cannot be as small as the tuning budget is tuned at the next one that it fits.

    returns : a line for each
    raises : MissingExtraError for a method that needs a package which is not there
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    larger = sorted(budget for budget in suite.budgets if budget > suite.tuning_budget)
    budget, larger = (suite.tuning_budget, larger) if has_budget(method) else (None, [])
    space = suite.space_of(method)
    metric, sign = FIGURE_OF_TASK[suite.task]
    distributions = {key: _distribution(one) for key, one in space.items()}
    study = optuna.create_study(
        direction="maximize" if sign > 0 else "minimize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=max(3, suite.trials // 2)),
    )
    lines = []
    for number in range(suite.trials):
        file = folder / f"{method}-{number}.json"
        trial = None if number == 0 else study.ask(distributions)
        chosen = {} if trial is None else dict(trial.params)
        values = suite.run_values(method, chosen, suite.seeds[0], is_final=False)
        line = _attempt(suite, method, values, budget, file, device)
        while line["status"] == "does not fit" and larger:
            budget = larger.pop(0)
            line = _attempt(suite, method, values, budget, file, device)
        line |= {"number": number, "chosen": json.dumps(chosen)}
        lines.append(line)
        if line["status"] == "does not fit":
            break
        if trial is not None:
            if line["status"] == "done":
                study.tell(trial, line[metric])
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return lines


def _attempt(
    suite: SuiteConfig,
    method: str,
    values: Mapping[str, Any],
    budget: float | None,
    file: Path,
    device: str,
) -> dict[str, Any]:
    """One trial, from its file if that has these very values."""
    made_of = repr((values, budget))
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["made_of"] == made_of:
            return dict(kept["line"])
    line = _line(suite.name, method, "trial", budget, suite.seeds[0])
    line["device"] = _device_name(method, device)
    try:
        line |= _figures(train_once(values, budget, device))
    except (ArgumentError, ConfigError) as error:
        line |= {"status": "does not fit", "error": str(error)}
    except MissingExtraError:  # nothing to keep: once it is installed, trials run
        raise
    except Exception as error:  # whatever it is, other trials go on
        line |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    write_text(file, json.dumps({"made_of": made_of, "line": line}))
    return line


def run_final(
    suite: str,
    values: Mapping[str, Any],
    budget: float | None,
    chosen: str,
    out: Path,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train on all but the test data with the settings of the best trial, and score once.

    suite : its name        chosen : the settings that tuning found, as JSON, for the record
    """
    method = values["embedding"]["kind"]
    line = _line(suite, method, "final", budget, values["seed"])
    line["device"] = _device_name(method, device)
    try:
        outcome = train_once(values, budget, device)
    except (ArgumentError, ConfigError) as error:
        return line | {"status": "does not fit", "error": str(error)}
    per_user: dict[str, Any] = {}
    if outcome.ranking is not None:
        per_user = {"ranked_users": outcome.ranking.users, **outcome.ranking.values}
    np.savez(out, prediction=outcome.prediction, **per_user)
    return line | _figures(outcome) | {"number": 0, "chosen": chosen}


def _line(suite: str, method: str, kind: str, budget: float | None, seed: int) -> dict[str, Any]:
    return {
        "suite": suite,
        "method": method,
        "kind": kind,
        "budget": budget,
        "seed": seed,
        "status": "done",
        "error": None,
        "commit": current_commit(),
        "versions": json.dumps(versions(_PACKAGES) | _peer_version(method)),
    }


def _device_name(method: str, device: str) -> str:
    """Peers train on the processor, whatever a suite runs on."""
    return device_name("cpu" if method in PEERS else device)


def _peer_version(method: str) -> dict[str, str]:
    return PEERS[method].version() if method in PEERS else {}


def _figures(outcome: Outcome) -> dict[str, Any]:
    plain = {key: value for key, value in outcome.figures.items() if isinstance(value, int | float)}
    sizes = ("table_bytes", "code_bytes", "personal_bytes", "total_bytes", "full_table_bytes")
    return {
        **plain,
        **{key: outcome.memory[key] for key in sizes},
        "figures": json.dumps(outcome.figures),
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "config": outcome.config,
        "data_fingerprint": outcome.fingerprint,
    }


def _distribution(one: Mapping[str, Any]) -> Any:
    import optuna

    if "choices" in one:
        return optuna.distributions.CategoricalDistribution(tuple(one["choices"]))
    if one.get("int"):
        return optuna.distributions.IntDistribution(one["low"], one["high"], log=True)
    return optuna.distributions.FloatDistribution(one["low"], one["high"], log=True)


# --- all of it -----------------------------------------------------------------------------------


def run_suite(
    suite: SuiteConfig,
    folder: Path,
    *,
    only: Collection[str] | None = None,
    processes: int | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> pl.DataFrame:
    """Run what is not there yet, and write trials.parquet.

    folder : of the suite; made if missing
    only : methods that run; of others what is there stays. None: all
    processes : one thread each; None: as many as there are cores
    device : that trains; runs on another device that are there stay, and every line names its own
    returns : the content of trials.parquet. Failed runs have a line as well, with the error
    """
    check_device(device)
    jobs = Jobs(
        folder / "jobs",
        processes or len(os.sched_getaffinity(0)),
        commit=current_commit(),
        tell=tell,
    )
    for name in ("trials", "predictions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_text(folder / SUITE_FILE, suite.to_toml())

    def results(work: Mapping[str, tuple[str, Job]]) -> dict[str, Any]:
        """By name of the job; work : by that, its method and the job."""
        idle = {name: job for name, (method, job) in work.items() if only and method not in only}
        return jobs.kept(idle) | jobs.run(
            {name: job for name, (_, job) in work.items() if name not in idle}
        )

    tuning = {
        f"tune-{method}": (
            method,
            Job(tune, (suite.of_method(method), method), (folder / "trials", device)),
        )
        for method in suite.methods
    }
    tuned = results(tuning)
    scoring = {
        name: (method, job)
        for method in suite.methods
        if f"tune-{method}" in tuned
        for name, job in _final_jobs(suite, method, tuned[f"tune-{method}"], folder, device).items()
    }
    final = results(scoring)
    lines = [line for some in tuned.values() for line in some] + list(final.values())
    all_jobs = tuning | scoring
    lines += [_failed(suite, *all_jobs[name], error) for name, error in jobs.failures.items()]
    frame = pl.DataFrame(lines, infer_schema_length=None)
    write_whole(folder / TRIALS_FILE, frame.write_parquet)
    return frame


def _final_jobs(
    suite: SuiteConfig, method: str, trials: list[dict[str, Any]], folder: Path, device: str
) -> dict[str, Job]:
    """A job for each budget and seed, with the settings of the best trial."""
    best = best_trial(trials)
    if best is None:  # nothing fitted at the tuning budget: defaults
        default = config_of(suite.run_values(method, {}, 0, is_final=False))
        chosen, epochs = {}, default.training.epochs
    else:
        chosen, epochs = json.loads(best["chosen"]), best["epochs"]
    jobs = {}
    for budget in suite.budgets if has_budget(method) else (None,):
        for seed in suite.seeds:
            name = final_name(method, budget, seed)
            values = suite.run_values(method, chosen, seed, is_final=True)
            if method not in PEERS:
                values = merged(values, {"training": {"epochs": epochs, "patience": False}})
            arguments = (suite.name, values, budget, json.dumps(chosen))
            aside = (prediction_file(folder, method, budget, seed), device)
            jobs[name] = Job(run_final, arguments, aside)
    return jobs


def final_name(method: str, budget: float | None, seed: int) -> str:
    """
    >>> final_name("pq", 0.05, 2), final_name("full", None, 0)
    ('pq-0.05-2', 'full-1-0')
    """
    return f"{method}-{budget or 1:g}-{seed}"


def prediction_file(folder: Path, method: str, budget: float | None, seed: int) -> Path:
    """Where a final run in a suite's folder puts what it predicts."""
    return folder / "predictions" / f"{final_name(method, budget, seed)}.npz"


def best_trial(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the best validation figure; None if none is done."""
    done = [line for line in lines if line["status"] == "done"]
    if not done:
        return None
    task: Task = "binary" if "auc" in done[0] else "rating"
    metric, sign = FIGURE_OF_TASK[task]
    return max(done, key=lambda line: sign * line[metric])


def final_parts(suite: SuiteConfig, seed: int) -> Parts:
    """What final runs with a seed train on, and what they predict, in the order of predictions."""
    config = config_of(suite.run_values(suite.methods[0], {}, seed, is_final=True))
    interactions = load_interactions(config)
    return divide(completed(config, interactions), interactions)


def _failed(suite: SuiteConfig, method: str, job: Job, error: str) -> dict[str, Any]:
    """A line for a job that failed."""
    if job.function is tune:
        line = _line(suite.name, method, "trial", None, suite.seeds[0])
    else:
        _, values, budget, _ = job.arguments
        line = _line(suite.name, method, "final", budget, values["seed"])
    return line | {"status": "failed", "error": error}
