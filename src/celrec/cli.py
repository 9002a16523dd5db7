"""The command line. Every command imports what it needs when it runs, so that help comes at once.

Results go to standard output, everything else to standard error. Exit status: 0; 2 for a mistake
in usage, data or files, with one message; 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from celrec.errors import (
    CelrecError,
    ConfigError,
    MissingExtraError,
    check_count,
    nearest_name,
)

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree
except ModuleNotFoundError as error:
    raise SystemExit(
        f"error: the command line needs the package {error.name}; install it with: "
        "pip install 'celrec[cli]'"
    ) from error

EXTRA_OF_MODULE = {
    "polars": "data",
    "platformdirs": "data",
    "pooch": "data",
    "sklearn": "train",
    "rich": "train",
    "tomli_w": "train",
    "optuna": "bench",
    "plotly": "report",
    "jinja2": "report",
}

app = typer.Typer(
    name="celrec",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(data_app, name="data")

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in given
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="celrec")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        message = _explanation(error)
        if message is None:  # a mistake of ours
            raise
        if is_debug:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def _explanation(error: Exception) -> str | None:
    """What to tell a person; None for an error that nobody foresaw."""
    if isinstance(error, CelrecError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = EXTRA_OF_MODULE.get(error.name.split(".")[0])
        if extra is not None:
            return str(
                MissingExtraError(
                    f"this needs the package {error.name}, which is not installed; install it "
                    f"with: pip install 'celrec[{extra}]'"
                )
            )
    is_out_of_memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
    if is_out_of_memory:
        return (
            "there is not enough memory; use narrower vectors (--width), smaller tables "
            "(--embedding clustered), smaller batches (--batch-size), or less data"
        )
    return str(error) if isinstance(error, OSError) else None


@app.callback(invoke_without_command=True)
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Embedding tables a fraction of the size of full ones, and about as accurate.

    Clustered embeddings on recommendation data: train, compare, look inside.

    [bold]Begin with[/bold]

    \b
    [cyan]celrec demo[/cyan]                      clustered, hashed and full tables compared
    [cyan]celrec train ml-100k --out RUN[/cyan]   one run
    [cyan]celrec evaluate RUN[/cyan]              its figures on the test set
    [cyan]celrec inspect RUN[/cyan]               its clusters
    [cyan]celrec report RUN[/cyan]                all of it as one page
    [cyan]celrec bench SUITE.toml[/cyan]          methods compared at equal bytes
    [cyan]celrec stream SOURCE --out DIR[/cyan]   learn from a stream, forever, in bounded memory

    Every command explains itself: [cyan]celrec COMMAND --help[/cyan]
    """
    if version:
        from importlib.metadata import version as version_of

        print(f"celrec {version_of('celrec')}")
        raise typer.Exit


# --- data ----------------------------------------------------------------------------------------


@data_app.callback()
def data() -> None:
    """Public data sets: list them, fetch them.

    \b
    [cyan]celrec data list[/cyan]
    [cyan]celrec data fetch ml-100k[/cyan]
    """


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the data sets of the catalog, and which are here already.

    \b
    [cyan]celrec data list[/cyan]
    [cyan]celrec data list --json[/cyan]
    """
    from celrec.data.catalog import is_cached, list_datasets

    rows = [
        {
            "name": entry.name,
            "title": entry.title,
            "description": entry.description,
            "interactions": entry.num_interactions,
            "users": entry.num_users,
            "items": entry.num_items,
            "terms": entry.terms,
            "homepage": entry.homepage,
            "is_here": is_cached(entry.name),
        }
        for entry in list_datasets()
    ]
    if as_json:
        _print_json(rows)
        return
    table = Table("name", "title", "interactions", "users", "items", "here")
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("interactions", "users", "items")]
        table.add_row(
            str(row["name"]), str(row["title"]), *counts, "yes" if row["is_here"] else "no"
        )
    out.print(table)
    for row in rows:
        out.print(f"{row['name']}: {row['description']}. Terms: {row['terms']}", highlight=False)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name from `celrec data list`.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a data set into the cache, verified; at once if it is there.

    \b
    [cyan]celrec data fetch ml-100k[/cyan]
    [cyan]CELREC_CACHE=/big/disk celrec data fetch ml-1m[/cyan]   keep it elsewhere
    """
    from celrec.data.catalog import fetch

    folder = fetch(name)
    if as_json:
        _print_json({"name": name, "folder": str(folder)})
    else:
        print(f"{name} is in {folder}")


# --- train ---------------------------------------------------------------------------------------


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


def _rows(text: str | None) -> int | str | None:
    """A number of rows; what is none stays a text, for the configuration to accept or refuse."""
    try:
        return text if text is None else int(text)
    except ValueError:
        return text


@app.command()
def train(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A name from `celrec data list`, or a file of interactions: .csv, "
            ".tsv, .parquet, .inter, u.data, ratings.dat.",
            show_default=False,
        ),
    ] = None,
    user_col: Annotated[
        str | None, _option("Columns", "Users. Default: user", "--user-col")
    ] = None,
    item_col: Annotated[
        str | None, _option("Columns", "Items. Default: item", "--item-col")
    ] = None,
    label_col: Annotated[
        str | None, _option("Columns", "Ratings, or 0 and 1. Default: rating", "--label-col")
    ] = None,
    time_col: Annotated[
        str | None, _option("Columns", "Times: numbers or dates. Default: none", "--time-col")
    ] = None,
    title_col: Annotated[
        str | None, _option("Columns", "Titles of items. Default: none", "--title-col")
    ] = None,
    separator: Annotated[
        str | None, _option("Columns", "Between columns; by default told by the file's name.")
    ] = None,
    task: Annotated[
        str | None,
        _option("Task", "Predict the rating, or binary: a yes or no. Default: rating"),
    ] = None,
    positive_from: Annotated[
        float | None,
        _option(
            "Task",
            "Binary: the smallest label that is a yes. Default: as the labels stand if "
            "they are 0 and 1; 4, with 3 dropped, for ratings from 1 to 5.",
        ),
    ] = None,
    drop_rating: Annotated[
        float | None, _option("Task", "Leave out rows with this rating, the undecided middle.")
    ] = None,
    negatives: Annotated[
        int | None,
        _option(
            "Task",
            "Binary, for clicks or purchases without a label: every row is a yes, and "
            "this many items that the user did not meet are a no.",
        ),
    ] = None,
    partition: Annotated[
        str | None,
        _option(
            "Partition",
            "How test data are set apart: random, leave-last-out (each user's last events), "
            "time, truncated (some users and items keep a few events). Default: leave-last-out for "
            "a binary task with times, else random.",
        ),
    ] = None,
    partition_seed: Annotated[
        int | None, _option("Partition", "Of a random or truncated partition. Default: --seed")
    ] = None,
    test_share: Annotated[
        float | None, _option("Partition", "Random and time: part that tests. Default: 0.2")
    ] = None,
    validation_share: Annotated[
        float | None,
        _option("Partition", "Random and time: part of the rest that validates. Default: 0.1"),
    ] = None,
    merge_validation: Annotated[
        bool,
        _option(
            "Partition",
            "Train on train and validation data, for exactly --epochs: the run to "
            "report, once all choices are made.",
            "--merge-validation",
        ),
    ] = False,
    model: Annotated[
        str | None,
        _option(
            "Model",
            "gmf, biased-mf, nmf or neumf. Default: gmf for binary, biased-mf for rating",
        ),
    ] = None,
    width: Annotated[
        int | None, _option("Model", "Factors of a vector. Default: 32 for binary, 16 for rating")
    ] = None,
    embedding: Annotated[
        str | None,
        _option(
            "Model",
            "Tables: clustered, full, paper-cel (clusters by the paper's own rules), or a baseline "
            "such as hashed; an unknown name lists them all. Default: clustered",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        _option(
            "Model",
            "Rows of each clustered table, and of a baseline's the bytes of so many; auto: a "
            "clustered one takes as many as the data pay for. Default: 64, fewer for few entities",
        ),
    ] = None,
    user_rows: Annotated[str | None, _option("Model", "Rows of the users' table alone.")] = None,
    item_rows: Annotated[str | None, _option("Model", "Rows of the items' table alone.")] = None,
    blend: Annotated[
        int | None,
        _option(
            "Codes",
            "Clustered: clusters that an entity's code mixes, by four-bit weights; 1 for one "
            "cluster each. Default: 4",
        ),
    ] = None,
    personal: Annotated[
        bool,
        _option(
            "Codes",
            "Clustered: give every entity with data a vector of its own, in eight bits a number.",
            "--personal",
        ),
    ] = False,
    bytes_per_entity: Annotated[
        float | None,
        _option(
            "Codes",
            "Make the most of so many total bytes per entity, rows included. Clustered: chooses "
            "codes, and --rows where it is not given. Any other but full: its size.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        _option("Codes", "Of the posterior that blends follow. Default: 4"),
    ] = None,
    epochs: Annotated[int | None, _option("Training", "Passes over the training data.")] = None,
    batch_size: Annotated[int | None, _option("Training", "Samples per step.")] = None,
    optimizer: Annotated[
        str | None, _option("Training", "adamw, adam, adagrad, sgd or rmsprop.")
    ] = None,
    learning_rate: Annotated[float | None, _option("Training", "Of the first epochs.")] = None,
    weight_decay: Annotated[float | None, _option("Training", "The optimizer's own.")] = None,
    l2: Annotated[
        float | None, _option("Training", "Penalty on the vectors that a batch looks up.", "--l2")
    ] = None,
    patience: Annotated[
        int | None,
        _option("Training", "Stop after so many epochs without a better validation figure."),
    ] = None,
    growth_rounds: Annotated[
        int | None, _option("Training", "Clustered: rounds over which the clusters grow to --rows.")
    ] = None,
    settle_epochs: Annotated[
        int | None, _option("Training", "Clustered: epochs without a round at the end.")
    ] = None,
    seed: Annotated[int | None, _option("Training", "Default: 0")] = None,
    threads: Annotated[
        int,
        _option(
            "Training",
            "Processor threads. Default: 1, which is as fast for models of this size and leaves "
            "the other cores to other runs. Kept when a run is resumed.",
        ),
    ] = 1,
    device: Annotated[
        str,
        _option(
            "Training",
            "Where to train: cpu, or a GPU as PyTorch names it, such as cuda. Kept when a run is "
            "resumed.",
        ),
    ] = "cpu",
    out_dir: Annotated[
        Path | None, _option("Run", "Folder for the run. Default: a new one under runs/", "--out")
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            "Run",
            "Take settings from a TOML file; options win over it. Each run writes its "
            "complete config.toml, to copy from.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        _option("Run", "Go on with a run that was stopped; takes no other option."),
    ] = None,
    overwrite: Annotated[bool, _option("Run", "Replace a run in --out.", "--overwrite")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on a data set, and write everything about it into a run folder.

    Options that are left out have good values for the task. Ctrl-C stops between two steps; the run
    can be resumed.

    [bold]Examples[/bold]

    \b
    [cyan]celrec train ml-100k[/cyan]
        predict ratings, with 64 clusters of users and 64 of items, and blended codes
    [cyan]celrec train ml-1m --task binary --rows 32 --seed 1 --out runs/a[/cyan]
        predict whether a user likes a movie
    [cyan]celrec train clicks.csv --item-col page --task binary --negatives 4[/cyan]
        a file of one's own, without labels
    [cyan]celrec train ml-100k --personal[/cyan]
        every user and item also keeps a small vector of its own
    [cyan]celrec train ratings.parquet --time-col timestamp --embedding full[/cyan]
        a full table, to compare with
    [cyan]celrec train --resume runs/a[/cyan]
        go on where it was stopped
    """
    values = _nested(
        {
            "data.source": source,
            "data.user": user_col,
            "data.item": item_col,
            "data.label": label_col,
            "data.time": time_col,
            "data.title": title_col,
            "data.separator": separator,
            "task.kind": task,
            "task.positive_from": positive_from,
            "task.drop_rating": drop_rating,
            "task.negatives": negatives,
            "partition.kind": partition,
            "partition.seed": partition_seed,
            "partition.test_share": test_share,
            "partition.validation_share": validation_share,
            "partition.merge_validation": merge_validation or None,
            "model.kind": model,
            "model.width": width,
            "embedding.kind": embedding,
            "embedding.user_rows": _rows(rows if user_rows is None else user_rows),
            "embedding.item_rows": _rows(rows if item_rows is None else item_rows),
            "encoding.blend": blend,
            "encoding.personal": personal or None,
            "encoding.bytes_per_entity": bytes_per_entity,
            "encoding.blend_rule.temperature": temperature,
            "training.epochs": epochs,
            "training.batch_size": batch_size,
            "training.optimizer": optimizer,
            "training.learning_rate": learning_rate,
            "training.weight_decay": weight_decay,
            "training.l2": l2,
            "training.patience": patience,
            "clusters.schedule.growth_rounds": growth_rounds,
            "clusters.schedule.settle_epochs": settle_epochs,
            "seed": seed,
        }
    )
    if resume is not None and (values or config or out_dir or overwrite):
        raise ConfigError(
            "--resume takes its settings from the run and no other option; leave the others out, "
            "or start a new run without --resume"
        )
    if resume is None and source is None and config is None:
        raise ConfigError(
            "there is nothing to train on; name a data set or a file: celrec train ml-100k (see "
            "`celrec train --help`)"
        )
    import torch

    from celrec.experiments.config import RunConfig, merged, read_values
    from celrec.experiments.run import new_run_dir, resume_run, train_run
    from celrec.training.progress import RichProgress

    torch.set_num_threads(check_count("threads", threads, at_least=1))
    progress = RichProgress(err) if err.is_terminal else None
    run_dir = resume or out_dir
    try:
        if resume is not None:
            metrics = resume_run(resume, progress=progress)
        else:
            from_file = {} if config is None else read_values(config)
            chosen = RunConfig.from_values(merged(from_file, values))
            _check_codes(chosen.embedding.kind, values.get("encoding", {}))
            run_dir = run_dir or new_run_dir(chosen)
            metrics = train_run(
                chosen,
                run_dir,
                command=sys.argv,
                overwrite=overwrite,
                progress=progress,
                device=device,
            )
    except KeyboardInterrupt:
        if run_dir is not None and (run_dir / "config.toml").exists():
            _say(f"stopped; go on with: celrec train --resume {run_dir}")
        else:
            _say("stopped before the run began; there is nothing to resume")
        raise typer.Exit(130) from None
    if as_json:
        _print_json({"run": str(run_dir), **metrics})
        return
    _print_figures({str(run_dir): metrics})
    print(f"run: {run_dir}")
    _say(f"next: celrec inspect {run_dir}, or celrec report {run_dir}")


def _check_codes(embedding: str, asked: Mapping[str, Any]) -> None:
    """Refuse options about codes that would have no effect.

    asked : of the section [encoding], what the command line gives
    """
    if asked.keys() - {"bytes_per_entity"} and embedding != "clustered":
        raise ConfigError(
            f"codes belong to clustered tables, but the embedding is {embedding}; leave out "
            "--blend, --personal and --temperature, or choose --embedding clustered"
        )
    if "blend" in asked and "bytes_per_entity" in asked:
        raise ConfigError(
            "--blend and --bytes-per-entity are both given, but the byte budget decides by itself "
            "how many clusters a code mixes; leave one of them out"
        )


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, by section.

    >>> _nested({"model.width": 8, "model.kind": None, "seed": 0})
    {'model': {'width': 8}, 'seed': 0}
    """
    values: dict[str, Any] = {}
    for path, value in options.items():
        if value is not None:
            *sections, key = path.split(".")
            section = values
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = value
    return values


# --- evaluate, inspect, report -------------------------------------------------------------------


Runs = Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)]


@app.command()
def evaluate(
    runs: Runs,
    data: Annotated[
        str | None, typer.Option("--data", help="The data file, if it has moved.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute test figures anew, from a run's checkpoint and its data.

    Several runs give a line each, and mean and standard deviation of those that differ in their
    seeds only.

    \b
    [cyan]celrec evaluate runs/a[/cyan]
    [cyan]celrec evaluate runs/seed-*[/cyan]
    [cyan]celrec evaluate runs/a --json[/cyan]
    """
    from celrec.experiments.run import evaluate_run
    from celrec.experiments.summary import summarise

    figures = {str(run): evaluate_run(run, source=data) for run in runs}
    groups = summarise(figures)
    if as_json:
        rows = [{"run": run, **found} for run, found in figures.items()]
        _print_json({"runs": rows, "groups": groups})
        return
    _print_figures(figures)
    for group in groups:
        if group["num_runs"] > 1:
            parts = [
                f"{name} {_shown(group['mean'][name])} ± {_shown(group['std'][name])}"
                for name in _figure_names(group["mean"])
            ]
            out.print(f"{group['label']}, {group['num_runs']} runs: {', '.join(parts)}")


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    table: Annotated[
        str | None, typer.Option(help="One table only.", metavar="user|item", show_default=False)
    ] = None,
    typical: Annotated[
        str,
        typer.Option(
            help="Name the members with most training data, or those closest to the cluster's row.",
            metavar="popular|closest",
        ),
    ] = "popular",
    members: Annotated[int, typer.Option(help="Members to name per cluster.", min=0)] = 3,
    as_json: AsJson = False,
) -> None:
    """Look at the clusters of a run: how they split, how large they are, who is in them.

    A cluster stands below the one that it was split from. Its members are those whose code weighs
    it heaviest. Where codes mix several clusters, its weight is that in all codes together: more
    than its members where others use it as well.

    \b
    [cyan]celrec inspect runs/a --table item[/cyan]
    [cyan]celrec inspect runs/a --typical closest --members 5 --json[/cyan]
    """
    if table not in (None, "user", "item"):
        raise ConfigError(f"--table is {table!r}; wanted 'user' or 'item'")
    from celrec.experiments.cluster_view import view_clusters

    entities = ("user", "item") if table is None else (table,)
    views = view_clusters(run, entities, typical=typical, num_members=members)  # type: ignore[arg-type]
    if as_json:
        _print_json({"run": str(run), "tables": views})
        return
    for view in views:
        out.print(_cluster_tree(view), highlight=False)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, the demo's folder, or the folder of one suite or stream.",
            show_default=False,
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="Its title.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about runs, about a suite of methods, or about a stream.

    Of runs it shows figures, clusters, maps and settings; of a suite, accuracy against bytes; of a
    stream, how AUC, clusters and bytes went.

    \b
    [cyan]celrec report runs/a[/cyan]
    [cyan]celrec report runs/clustered runs/full runs/hashed --out compare.html[/cyan]
    [cyan]celrec report runs/ml_100k --out suite.html[/cyan]
    [cyan]celrec report runs/clicks --out stream.html[/cyan]
    """
    from celrec.experiments.demo import report_on

    path = report_on(runs, out_file, title=title)
    if as_json:
        _print_json({"report": str(path)})
    else:
        print(path)


# --- bench ---------------------------------------------------------------------------------------


@app.command()
def bench(
    suite_file: Annotated[
        Path, typer.Argument(help="A suite: a TOML file, see below.", show_default=False)
    ],
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for results. Default: under runs/, named after the file. One that holds "
            "results already goes on.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Jobs at once, one thread each. Default: one for each core."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of the suite's data, if they are a file. Default: this one.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, or a GPU as PyTorch names it, such as cuda.")
    ] = "cpu",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this method of the suite alone; can be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods at equal bytes: tune each on validation data, then score it on test data.

    A suite names a data set, methods, byte budgets and seeds; every method gets as many tuning
    trials. Stop it at any time; the same command goes on. What fails is said and left out.

    \b
    [cyan]celrec bench benchmarks/quality/ml_100k.toml[/cyan]
    [cyan]celrec bench suite.toml --out runs/suite --only clustered --only pq[/cyan]
    """
    import dataclasses

    from celrec.experiments.suite import SuiteConfig, run_suite
    from celrec.experiments.suite_report import PAGE_FILE, report_suite
    from celrec.experiments.suite_results import comparisons, standings

    suite = SuiteConfig.read(suite_file).with_data_in(data_dir or Path())
    if only:
        unknown = sorted(set(only) - set(suite.methods))
        if unknown:
            raise ConfigError(
                f"--only {unknown[0]} is no method of {suite_file}; "
                f"{nearest_name(unknown[0], suite.methods)}"
            )
    if processes is not None:
        check_count("--processes", processes, at_least=1)
    folder = out_dir or Path("runs") / suite_file.stem
    try:
        trials = run_suite(suite, folder, only=only, processes=processes, device=device, tell=_say)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    table = standings(trials, suite.metric)
    compared = comparisons(suite, folder)
    page = None
    if not table.is_empty():
        page = report_suite(suite, trials, compared, folder / PAGE_FILE)
    if as_json:
        _print_json(
            {
                "folder": str(folder),
                "report": None if page is None else str(page),
                "standings": table.to_dicts(),
                "compared": [dataclasses.asdict(one) for one in compared],
            }
        )
        return
    _print_standings(suite, table.to_dicts())
    missing = trials.filter(trials["status"] == "failed")
    for line in missing.iter_rows(named=True):
        _say(f"failed: {line['method']} ({line['kind']}): {line['error']}")
    print(f"results: {folder}")
    if page is not None:
        print(f"report: {page}")


def _print_standings(suite: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """Methods by budgets, in the order of their mean."""
    figures = {(line["method"], line["budget"]): line for line in lines}
    heads = (f"1/{1 / b:g}" for b in suite.budgets)
    shown = Table(f"{suite.metric.upper()}, test", *heads, "any size")

    def cell(method: str, budget: float | None) -> str:
        line = figures.get((method, budget))
        if line is None:
            return "-"
        return f"{line['mean']:.4f}" + (f" ± {line['std']:.4f}" if line["std"] else "")

    for method in suite.methods:
        shown.add_row(method, *(cell(method, budget) for budget in (*suite.budgets, None)))
    out.print(shown)


# --- stream --------------------------------------------------------------------------------------


@app.command()
def stream(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A file (.jsonl, .csv, .tsv, .parquet), - for standard input, "
            "redis://HOST:PORT/STREAM, or kafka://HOST:PORT/TOPIC.",
            show_default=False,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        _option("Stream", "Folder for checkpoint, history and dead letters.", "--out"),
    ] = None,
    resume: Annotated[
        bool,
        _option(
            "Stream",
            "Go on from the checkpoint in --out, with its settings; begin if there is none.",
            "--resume",
        ),
    ] = False,
    follow: Annotated[
        bool, _option("Stream", "At the end of a file, wait for more.", "--follow")
    ] = False,
    max_events: Annotated[
        int | None,
        _option(
            "Stream",
            "Stop when so many events have been learned since the start of the stream, at the end "
            "of a batch. Default: never",
        ),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        _option(
            "Stream",
            "Save after so many events (10000), or seconds (30s). Saving changes nothing in what "
            "is learned. Default: 30s",
        ),
    ] = None,
    overwrite: Annotated[
        bool, _option("Stream", "Throw away the stream in --out.", "--overwrite")
    ] = False,
    user_col: Annotated[str | None, _option("Events", "Field of users. Default: user")] = None,
    item_col: Annotated[str | None, _option("Events", "Field of items. Default: item")] = None,
    label_col: Annotated[
        str | None, _option("Events", "Field of 0 and 1, or of ratings. Default: label")
    ] = None,
    time_col: Annotated[
        str | None, _option("Events", "Field of times: seconds, or dates. Default: none")
    ] = None,
    positive_from: Annotated[
        float | None,
        _option("Events", "The smallest rating that is a yes. Default: labels are 0, 1"),
    ] = None,
    drop_rating: Annotated[
        float | None, _option("Events", "Leave out events with this rating, the undecided middle.")
    ] = None,
    ids: Annotated[
        str | None,
        _option(
            "Events",
            "hashed: texts and integers. integer: integers alone, in fewer bytes; texts are dead "
            "letters. Default: hashed",
        ),
    ] = None,
    separator: Annotated[
        str | None, _option("Events", "Between columns; by default told by the file's name.")
    ] = None,
    columns: Annotated[
        str | None,
        _option("Events", "Names of CSV columns where no header gives them: user,item,label"),
    ] = None,
    group: Annotated[
        str | None,
        _option(
            "Events", "Consumer group of Redis and Kafka: one for each learner. Default: celrec"
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        _option(
            "Memory",
            "Of tables, codes and optimizer state together; never exceeded. 500kB, 10MB, 2GB. Maps "
            "of ids come on top: 18 to 26 bytes for each id that has a place. Default: 10MB",
        ),
    ] = None,
    admit_after: Annotated[
        int | None,
        _option(
            "Memory",
            "The sighting at which an id gets a code of its own; before that it shares one. "
            "Default: 2",
        ),
    ] = None,
    width: Annotated[int | None, _option("Model", "Factors of a vector. Default: 32")] = None,
    rows: Annotated[
        int | None, _option("Model", "Rows of each table: the most clusters. Default: 32")
    ] = None,
    blend: Annotated[int | None, _option("Model", "Clusters that a code mixes. Default: 4")] = None,
    learning_rate: Annotated[
        float | None, _option("Model", "Of the rows. Default: 0.01", "--lr", "--learning-rate")
    ] = None,
    batch_size: Annotated[
        int | None,
        _option(
            "Model",
            "Events that are predicted, then learned, together. Smaller ones predict better, "
            "larger ones are faster. Default: 32",
        ),
    ] = None,
    window: Annotated[
        int | None,
        _option("Model", "Events that AUC and log loss look back on. Default: 5000"),
    ] = None,
    seed: Annotated[int | None, _option("Model", "Default: 0")] = None,
    threads: Annotated[int | None, _option("Model", "Processor threads. Default: 1")] = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a stream of events, forever, in a fixed number of bytes.

    Every event is predicted, then learned. AUC and log loss are those of these predictions, beside
    what running means of users and items reach. Records that are no events go to dead_letters.jsonl
    with the reason, and stop nothing.

    Ctrl-C stops after the batch and saves. Killed at any moment, it goes on with --resume and ends
    with the same bits: no event is lost, none learned twice.

    [bold]Examples[/bold]

    \b
    [cyan]celrec stream clicks.jsonl --out runs/clicks[/cyan]
        a file of objects with user, item and label, one a line
    [cyan]celrec stream clicks.jsonl --out runs/clicks --follow --max-bytes 200MB[/cyan]
        the same, waiting for more
    [cyan]celrec stream ratings.csv --out runs/r --label-col rating --positive-from 4[/cyan]
        ratings: 4 and 5 are a yes
    [cyan]celrec stream redis://localhost:6379/clicks --out runs/clicks[/cyan]
    [cyan]celrec stream kafka://localhost:9092/clicks --out runs/clicks[/cyan]
    [cyan]celrec stream --out runs/clicks --resume[/cyan]
        go on where it was stopped, or killed
    [cyan]celrec report runs/clicks[/cyan]
        how it went, as a page
    """
    if out_dir is None:
        raise ConfigError("there is no folder to keep what is learned; name one: --out runs/stream")
    if resume and overwrite:
        raise ConfigError("--resume goes on and --overwrite begins anew; leave one of them out")
    from celrec.experiments.config import merged
    from celrec.experiments.stream import StreamConfig, learn_stream, saved_config
    from celrec.training.stream_progress import LiveStream, StreamLines

    given = _nested(
        {
            "address": source,
            "format.user": user_col,
            "format.item": item_col,
            "format.label": label_col,
            "format.timestamp": time_col,
            "format.positive_from": positive_from,
            "format.drop_rating": drop_rating,
            "separator": separator,
            "columns": None if columns is None else columns.split(","),
            "group": group,
            "threads": threads,
            "settings.ids": ids,
            "settings.max_bytes": None if max_bytes is None else _bytes_in(max_bytes),
            "settings.admit_after": admit_after,
            "settings.width": width,
            "settings.rows": rows,
            "settings.blend": blend,
            "settings.learning_rate": learning_rate,
            "settings.batch_size": batch_size,
            "settings.window": window,
            "settings.seed": seed,
        }
    )
    saved = saved_config(out_dir) if resume else None
    if saved is None and source is None:
        raise ConfigError(
            f"{out_dir} holds no checkpoint to go on from; name a source (see `celrec stream "
            "--help`)"
            if resume
            else "there is nothing to learn from; name a source: celrec stream clicks.jsonl --out "
            "runs/clicks (see `celrec stream --help`)"
        )
    base = saved or StreamConfig(address=str(source))
    config = StreamConfig.from_dict(merged(base.as_dict(), given))
    num_events, seconds = _checkpoint_every(checkpoint_every)
    go_on = f"go on with: celrec stream --out {out_dir} --resume" + (" --follow" if follow else "")
    try:
        with _stopping_gently() as should_stop:
            result = learn_stream(
                config,
                out_dir,
                resume=resume,
                overwrite=overwrite,
                follow=follow,
                max_events=max_events,
                checkpoint_events=num_events,
                checkpoint_seconds=seconds,
                should_stop=should_stop,
                progress=LiveStream(err) if err.is_terminal else StreamLines(_say),
                command=sys.argv,
            )
    except KeyboardInterrupt:
        _say(f"stopped at once, at the last checkpoint; {go_on}")
        raise typer.Exit(130) from None
    if as_json:
        _print_json({"folder": str(out_dir), **vars(result)})
    else:
        print(_stream_summary(result.figures, config.settings, result.bookmark["num_bad"]))
        print(f"stream: {out_dir}")
    if result.dead_letters:
        reasons = sorted(result.dead_letters.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:4])
        more = ", ..." if len(reasons) > 4 else ""
        _say(f"dead letters: {listed}{more}; see {out_dir / 'dead_letters.jsonl'}")
    if result.dead_letters and not result.figures["num_events"]:
        _say("no record is an event; name their fields: --user-col, --item-col, --label-col")
    if result.is_finished:
        _say(f"the source has no more; next: celrec report {out_dir}")
    else:
        _say(f"stopped and saved; {go_on}")


def _stream_summary(figures: Mapping[str, Any], settings: Any, num_bad: int) -> str:
    auc, loss, means = (_shown(figures[name]) for name in ("auc", "log_loss", "means_auc"))
    clusters, entities = figures["clusters"], figures["entities"]
    return (
        f"{figures['num_events']:,} events, {num_bad:,} dead letters; of the last "
        f"{min(figures['num_events'], settings.window):,}: AUC {auc} (running means {means}), log "
        f"loss {loss}; {clusters['user']} + {clusters['item']} clusters for {entities['user']:,} "
        f"users and {entities['item']:,} items in {figures['used_bytes']:,} of "
        f"{settings.max_bytes:,} bytes"
    )


def _bytes_in(text: str) -> int:
    """Read a number of bytes, with a decimal unit or without.

    >>> _bytes_in("10MB"), _bytes_in("1.5 kB"), _bytes_in("4096")
    (10000000, 1500, 4096)
    """
    units = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9}
    units["gb"] = 10**9
    number = text.strip().rstrip("kKmMgGbB ")
    unit = text.strip().removeprefix(number).strip().lower()
    try:
        return round(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"--max-bytes is {text!r}; wanted such as 500kB, 10MB or 2GB") from None


def _checkpoint_every(text: str | None) -> tuple[int | None, float | None]:
    """Events or seconds between checkpoints.

    >>> _checkpoint_every("10000"), _checkpoint_every("5s"), _checkpoint_every(None)
    ((10000, None), (None, 5.0), (None, 30.0))
    """
    text = "30s" if text is None else text.strip()
    try:
        if text.endswith("s"):
            return None, float(text[:-1])
        return int(text), None
    except ValueError:
        raise ConfigError(
            f"--checkpoint-every is {text!r}; wanted events, such as 10000, or seconds, such as 30s"
        ) from None


@contextmanager
def _stopping_gently() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish; a second one ends the process as ever."""
    is_wished = False
    before: dict[int, Any] = {}

    def wish(number: int, frame: object) -> None:
        nonlocal is_wished
        is_wished = True
        restore()  # nothing is printed: a handler may have interrupted a print

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: is_wished
    finally:
        restore()


# --- demo ----------------------------------------------------------------------------------------


@app.command()
def demo(
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the table's rows as JSON; - for standard output.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Folder for the runs and the report.")
    ] = Path("celrec-demo"),
    quick: Annotated[bool, typer.Option("--quick", hidden=True)] = False,
) -> None:
    """Compare clustered, hashed and full tables on MovieLens-100k: the whole point in minutes.

    Does a user like a movie? A model of width 32 learns it with a full table (a row for every user
    and movie), with hashed tables, with clustered ones of 8, 32 and 64 rows (hard codes, and
    blended ones), and with personal vectors; three times each. The settings were chosen beforehand,
    on validation data; the figures are of test data.

    \b
    [cyan]celrec demo[/cyan]
    [cyan]celrec demo --json rows.json --out runs/demo[/cyan]
    """
    from celrec.experiments.demo import run_demo, show_demo

    if json_file is not None:  # now, rather than after minutes
        json_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = run_demo(out_dir, quick=quick, console=err)
    except KeyboardInterrupt:
        _say("stopped; `celrec demo` begins anew")
        raise typer.Exit(130) from None
    text = json.dumps(result.rows, indent=2)
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(text + "\n", encoding="utf-8")
    if str(json_file) == "-":
        print(text)
        show_demo(result, err)
    else:
        show_demo(result, out)


# --- printing ------------------------------------------------------------------------------------


def _say(text: str) -> None:
    """To the person, on standard error, so that standard output holds results alone."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _figure_names(figures: Mapping[str, Any]) -> list[str]:
    return [name for name in ("auc", "log_loss", "ndcg", "mse", "rmse", "mae") if name in figures]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_figures(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """One line per run."""
    names = _figure_names(next(iter(figures.values())))
    table = Table()
    table.add_column("run", overflow="fold")
    for heading in (
        *names,
        f"{names[0]}, coldest users",
        f"{names[0]}, coldest items",
        "total bytes",
        "times smaller",
    ):
        table.add_column(heading, justify="right")
    short = {run: Path(run).name for run in figures}
    has_clash = len(set(short.values())) < len(short)
    for run, found in figures.items():
        memory = found["memory"]
        cold = [found[f"coldest_{entity}"] for entity in ("users", "items")]
        table.add_row(
            run if has_clash else short[run],
            *(_shown(found.get(name)) for name in names),
            *(_shown(slice_[names[0]]) for slice_ in cold),
            f"{memory['total_bytes']:,}",
            f"{memory['times_smaller']:.1f}",
        )
    out.print(table)


def _cluster_tree(view: Mapping[str, Any]) -> Tree:
    is_blended = view["blend"] > 1
    entities = f"{view['num_entities']:,} {view['entity']}s"
    head = f"[bold]{view['num_clusters']} clusters of {entities}[/bold]"
    if is_blended:
        head += f", {view['blend']} in a code"
    if view["levels"]:
        head += f", codes of {view['levels']} more rows"
    if view["personal"]:
        head += f", {view['personal']:,} {view['entity']}s with a vector of their own"
    tree = Tree(head)
    branches: dict[int | None, Tree] = {None: tree}
    for cluster in view["clusters"]:
        named = ", ".join(str(m["title"] or m["raw_id"]) for m in cluster["members"])
        line = f"[cyan]{cluster['cluster']}[/cyan]  {cluster['size']:,} "
        line += "member, " if cluster["size"] == 1 else "members, "
        if is_blended:
            line += f"weight {cluster['weight']:,.1f}, "
        line += f"{cluster['train_count']:,} interactions"
        branches[cluster["cluster"]] = branches[cluster["parent"]].add(
            line + (f"\n[dim]{_escaped(named)}[/dim]" if named else "")
        )
    return tree


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
