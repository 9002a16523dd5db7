"""The demo: clustered, blended, personal, hashed and full tables on MovieLens-100k.

Generalised matrix factorization of width 32 by the GMF protocol: rating 3 dropped, a yes from 4,
every user's last two events test. Every run trains on all other events for a number of epochs that
`benchmarks/tune_demo.py` chose on validation, with all other settings, and wrote into
demo_settings.toml; nothing is chosen here. Blended codes and personal vectors are made of clusters
that train with the settings of hard codes.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import signal
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import joblib  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from celrec.core.codes import code_dtype
from celrec.data.interactions import Interactions
from celrec.errors import CelrecError, ConfigError
from celrec.experiments.build import load_interactions
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.jobs import begin_worker
from celrec.experiments.run import train_run, write_text
from celrec.experiments.stream import STREAM_FILE
from celrec.experiments.suite import TRIALS_FILE
from celrec.experiments.summary import mean_and_std
from celrec.report.words import readable_bytes, times

ROWS = (8, 32, 64)
SEEDS = (0, 1, 2)
WIDTH = 32
_BYTES_PER_ROW = 4 * WIDTH

DATA: dict[str, Any] = {"source": "ml-100k"}
PROTOCOL: dict[str, Any] = {
    "task": {"kind": "binary", "positive_from": 4.0, "drop_rating": 3.0},
    "partition": {"kind": "leave-last-out", "num_test": 2, "num_validation": 1},
    "model": {"kind": "gmf", "width": WIDTH},
}


ENCODINGS: dict[str, dict[str, Any]] = {
    "clustered": {"blend": 1},
    "blended": {"blend": 4},
    "personal": {"personal": True, "personal_rule": {"epochs": 24, "looseness": 0.25}},
}
"""What becomes of clusters after training, by the name in the table."""

PERSONAL_ROWS = 32


@dataclass(frozen=True)
class Variant:
    """One line of the demo's table.

    name : of its run folders
    embedding : "full", "hashed", "clustered" (hard codes), "blended" or "personal"
    rows : of each of the two tables; None for full
    """

    name: str
    embedding: str
    rows: int | None

    @property
    def settings_name(self) -> str:
        """Its section in demo_settings.toml: one for all that becomes of the same clusters."""
        return f"clustered-{self.rows}" if self.embedding in ENCODINGS else self.name

    def values(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Its part of the configuration.

        settings : values of a RunConfig, for what the protocol leaves open
        """
        encoding = ENCODINGS.get(self.embedding)
        table: dict[str, Any] = {"kind": self.embedding if encoding is None else "clustered"}
        if self.rows is not None:
            table |= {"user_rows": self.rows, "item_rows": self.rows}
        values = merged(merged(PROTOCOL, settings), {"embedding": table})
        return values if encoding is None else merged(values, {"encoding": encoding})


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    rows : per variant, ready for JSON
    report : the HTML page        folder : what holds it and all runs
    """

    rows: list[dict[str, Any]]
    report: Path
    folder: Path


def run_demo(folder: Path, *, console: Console, quick: bool = False) -> DemoResult:
    """Train every variant with every seed, and write rows, report and run folders.

    folder : what an earlier demo left there is replaced
    console : for the progress bar
    quick : a few variants, one seed and two epochs, to see that everything works
    raises : CatalogError if the data cannot be had
    """
    from celrec.report.page import write_report  # first, in case its libraries are missing

    interactions = load_interactions(demo_config(Variant("full", "full", None), 0))
    variants = [
        variant
        for variant in demo_variants(interactions)
        if not quick or variant.rows is None or variant.rows < 32 or variant.embedding == "personal"
    ]
    runs = {
        folder / "runs" / f"{variant.name}-seed{seed}": demo_config(variant, seed, quick=quick)
        for variant in variants
        for seed in (SEEDS[:1] if quick else SEEDS)
    }
    _clear(folder)
    figures = train_side_by_side(runs, console)
    rows = []
    for variant in variants:
        of_variant = [run for run in runs if run.name.rpartition("-")[0] == variant.name]
        rows.append(_row(variant, [figures[run] for run in of_variant]))
    write_text(folder / "demo.json", json.dumps(rows, indent=2))
    report = write_report(list(runs), folder / "report.html", demo_rows=rows)
    return DemoResult(rows, report, folder)


def demo_variants(interactions: Interactions) -> list[Variant]:
    """The lines of the table, in order."""
    variants = [Variant("full", "full", None)]
    variants += [Variant(f"hashed-{rows}", "hashed", rows) for rows in ROWS]
    variants += [
        Variant(f"hashed-as-clustered-{rows}", "hashed", _rows_of_equal_bytes(rows, interactions))
        for rows in ROWS
    ]
    for kind in ("clustered", "blended"):
        variants += [Variant(f"{kind}-{rows}", kind, rows) for rows in ROWS]
    return [*variants, Variant(f"personal-{PERSONAL_ROWS}", "personal", PERSONAL_ROWS)]


def shipped_settings() -> dict[str, dict[str, Any]]:
    """demo_settings.toml: values of a RunConfig by the name of the variant."""
    file = resources.files("celrec.experiments") / "demo_settings.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def show_demo(result: DemoResult, console: Console) -> None:
    """Print the table, what it says, and where the report is."""
    table = Table(
        title="MovieLens-100k: does the user like the movie?",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    # Broken by hand, to fit into 80 columns.
    for heading in (
        "\nembedding",
        "rows per\ntable",
        "\nAUC",
        "coldest\nusers",
        "coldest\nitems",
        "table\nbytes",
        "total\nbytes",
        "times\nsmaller",
        "\nsec",
    ):
        justify: Literal["left", "right"] = "left" if "embedding" in heading else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in result.rows:
        spread = "" if row["auc_std"] is None else f" ± {row['auc_std']:.3f}"
        table.add_row(
            row["embedding"],
            "one each" if row["rows_per_table"] is None else str(row["rows_per_table"]),
            f"{row['auc_mean']:.3f}{spread}",
            *(_shown(row[f"auc_coldest_{entity}"]) for entity in ("users", "items")),
            readable_bytes(row["table_bytes"]),
            readable_bytes(row["total_bytes"]),
            times(row["times_smaller"]),
            f"{row['seconds']:.1f}",
            style="bold green" if row["embedding"] in ENCODINGS else None,
        )
    console.print(table)
    console.print(conclusion(result.rows), highlight=False)
    console.print(f"report: {result.report.resolve()}", highlight=False, soft_wrap=True)


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the figures say: full tables against ours of every kind.

    Of hard codes the smallest table, where hashing fails; of others the smallest that is level with
    the best of its kind.
    """

    def of_kind(kind: str) -> list[Mapping[str, Any]]:
        by_bytes = sorted(rows, key=lambda row: row["total_bytes"])
        return [row for row in by_bytes if row["embedding"] == kind]

    full, clustered = of_kind("full")[0], of_kind("clustered")[0]
    blended, personal = (_smallest_level(of_kind(kind)) for kind in ("blended", "personal"))
    rival = min(
        of_kind("hashed"), key=lambda row: abs(row["total_bytes"] - clustered["total_bytes"])
    )
    return (
        f"Full tables reach an AUC of {full['auc_mean']:.3f} in "
        f"{readable_bytes(full['total_bytes'])}. Clustered tables of "
        f"{clustered['rows_per_table']} rows reach {clustered['auc_mean']:.3f} and are "
        f"{times(clustered['times_smaller'])} times smaller; hashed ones of as many bytes reach "
        f"{rival['auc_mean']:.3f}. Blended codes of {blended['rows_per_table']} rows reach "
        f"{blended['auc_mean']:.3f}, {times(blended['times_smaller'])} times smaller. Personal "
        f"vectors reach {personal['auc_mean']:.3f}, {times(personal['times_smaller'])} times "
        "smaller."
    )


def _smallest_level(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first line that is as good as the best but for the spread over seeds.

    rows : the smallest first
    """
    best = max(rows, key=lambda row: row["auc_mean"])

    def is_level(row: Mapping[str, Any]) -> bool:
        spread = max(row["auc_std"] or 0.0, best["auc_std"] or 0.0)
        return bool(best["auc_mean"] - row["auc_mean"] <= spread)

    return next(row for row in rows if is_level(row))


def report_on(folders: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write the report of run folders; the folder of a demo stands for all runs in it.

    The folder of a suite or a stream has a page of its own kind, and comes alone.

    raises : ConfigError where it does not, or where a suite has a title other than its name
    """
    streams = [folder for folder in folders if (folder / STREAM_FILE).is_file()]
    if streams and len(folders) > 1:
        raise ConfigError(
            f"{streams[0]} is the folder of a stream, which has a page of its own; give it alone"
        )
    if streams:
        from celrec.report.stream_page import write_stream_report

        return write_stream_report(streams[0], out, title=title)
    suites = [folder for folder in folders if (folder / TRIALS_FILE).is_file()]
    if suites and (len(folders) > 1 or title is not None):
        raise ConfigError(
            f"{suites[0]} is the folder of a suite, which has a page of its own and is titled by "
            "its name; give it alone, without --title"
        )
    if suites:
        from celrec.experiments.suite_report import report_on_suite

        return report_on_suite(suites[0], out)
    from celrec.report.page import write_report

    runs: list[Path] = []
    rows: list[dict[str, Any]] = []
    for folder in folders:
        if (folder / "demo.json").is_file():
            rows += json.loads((folder / "demo.json").read_text(encoding="utf-8"))
            runs += sorted((folder / "runs").iterdir())
        else:
            runs.append(folder)
    return write_report(runs, out, demo_rows=rows or None, title=title)


# --- running -------------------------------------------------------------------------------------


def train_side_by_side(
    runs: Mapping[Path, RunConfig], console: Console
) -> dict[Path, dict[str, Any]]:
    """Train runs in as many processes as there are cores, one thread each.

    runs : configuration by run folder
    returns : the content of metrics.json by run folder
    """
    num_workers = min(joblib.cpu_count(), len(runs))  # counts what this process may use
    context = multiprocessing.get_context("spawn")
    figures: dict[Path, dict[str, Any]] = {}
    with (
        _progress(console, len(runs)) as advance,
        ProcessPoolExecutor(num_workers, context, initializer=start_worker) as pool,
    ):
        # The longest first, so that no core waits at the end.
        by_length = sorted(
            runs,
            key=lambda run: (
                not runs[run].encoding.is_personal,
                runs[run].embedding.kind != "clustered",
            ),
        )
        running = {pool.submit(_train, runs[run], run): run for run in by_length}
        try:
            for done in as_completed(running):
                figures[running[done]] = done.result()
                advance()
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        except BrokenProcessPool as error:
            raise CelrecError(
                "a process that trained was ended from outside, probably for want of memory; close "
                "other programs and run it again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return figures


def start_worker() -> None:
    """What every process that trains does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    begin_worker()


def _train(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    return train_run(config, run_dir, command=("celrec", "demo"), overwrite=True)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        row = bar.add_task("", total=total)
        yield lambda: bar.advance(row)


def demo_config(variant: Variant, seed: int, *, quick: bool = False) -> RunConfig:
    """The configuration of one run of the demo."""
    settings = shipped_settings()[variant.settings_name]
    values = merged(variant.values(settings), {"data": DATA, "seed": seed})
    values = merged(values, {"partition": {"merge_validation": True}})
    if quick:
        values = merged(
            values,
            {
                "training": {"epochs": 2},
                "clusters": {"schedule": {"growth_rounds": 1, "settle_epochs": 0}},
                "encoding": {"personal_rule": {"epochs": 1, "warm_epochs": 0}},
            },
        )
    return RunConfig.from_values(values)


def _rows_of_equal_bytes(rows: int, interactions: Interactions) -> int:
    """Rows per hashed table so that both take at least the total bytes of two clustered ones."""
    num_entities = interactions.num_users + interactions.num_items
    total = 2 * rows * _BYTES_PER_ROW + num_entities * code_dtype(rows).itemsize
    return math.ceil(total / (2 * _BYTES_PER_ROW))


def _row(variant: Variant, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    average, spread = mean_and_std(figures)
    memory = figures[0]["memory"]
    return {
        "embedding": variant.embedding,
        "rows_per_table": variant.rows,
        "auc_mean": average["auc"],
        "auc_std": spread["auc"],
        "auc_coldest_users": _or_too_few(average["coldest_users"]["auc"]),
        "auc_coldest_items": _or_too_few(average["coldest_items"]["auc"]),
        "table_bytes": memory["table_bytes"],
        "total_bytes": memory["total_bytes"],
        "times_smaller": memory["times_smaller"],
        "seconds": mean(run["seconds"] for run in figures),
    }


def _or_too_few(figure: float | None) -> float | str:
    return "too few" if figure is None else figure


def _shown(figure: float | str) -> str:
    return figure if isinstance(figure, str) else f"{figure:.3f}"


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; nothing else in the folder is touched."""
    for name in ("demo.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    runs = folder / "runs"
    if runs.is_dir():
        for run in runs.iterdir():
            if (run / "config.toml").is_file() and "-seed" in run.name:
                shutil.rmtree(run)
