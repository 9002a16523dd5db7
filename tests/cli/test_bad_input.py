"""Bad input: one clear message, exit status 2, no traceback unless asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import celrec.cli as cli
from celrec.checkpoint import load_arrays, save_arrays
from tests.cli.making import CommandLine
from tests.experiments.making import write_planted


def refused(celrec: CommandLine, *arguments: object) -> str:
    """The message of a refused command."""
    done = celrec(*arguments)
    assert done.status == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [n % 7 for n in range(60)],
            "item": [n % 11 for n in range(60)],
            "rating": [float(1 + n % 5) for n in range(60)],
            "timestamp": list(range(60)),
        }
    )


def written(path: Path, **columns: list[object]) -> Path:
    frame().with_columns(
        pl.Series(name, values, strict=False) for name, values in columns.items()
    ).write_csv(path)
    return path


# --- data ----------------------------------------------------------------------------------------


def test_a_misnamed_column(celrec: CommandLine, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv")
    said = refused(celrec, "train", file, "--label-col", "ratng")
    assert "ratng" in said
    assert "did you mean 'rating'?" in said
    assert "'time" in refused(celrec, "train", file, "--time-col", "time")


@pytest.mark.parametrize("bad", ["nan", "inf", "much"])
def test_labels_that_are_no_finite_numbers(celrec: CommandLine, tmp_path: Path, bad: str) -> None:
    labels = ["3.0"] * 59 + [bad]
    said = refused(celrec, "train", written(tmp_path / "a.csv", rating=labels))
    assert "row 60" in said
    assert "wanted a finite number" in said


@pytest.mark.parametrize("ids", [[1.5] * 60, [None, *range(59)]])
def test_ids_that_name_no_entity(celrec: CommandLine, tmp_path: Path, ids: list[object]) -> None:
    file = tmp_path / "a.parquet"
    frame().with_columns(pl.Series("user", ids)).write_parquet(file)
    said = refused(celrec, "train", file)
    assert "row 1" in said
    assert "column 'user'" in said


def test_an_empty_file(celrec: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.touch()
    assert "a.csv" in refused(celrec, "train", file)
    frame().clear().write_csv(file)
    assert "no rows" in refused(celrec, "train", file)


def test_a_truncated_parquet_file(celrec: CommandLine, tmp_path: Path) -> None:
    whole = write_planted(tmp_path / "a.parquet").read_bytes()
    file = tmp_path / "b.parquet"
    file.write_bytes(whole[: len(whole) // 2])
    assert "b.parquet" in refused(celrec, "train", file)


def test_a_missing_file_and_an_unknown_data_set(celrec: CommandLine) -> None:
    assert "nowhere.csv" in refused(celrec, "train", "nowhere.csv")
    assert "did you mean 'ml-1m'?" in refused(celrec, "train", "ml-1n")
    assert "did you mean 'ml-1m'?" in refused(celrec, "data", "fetch", "ml1m")


@pytest.mark.parametrize("label", [1.0, 5.0])
def test_one_class_only(celrec: CommandLine, tmp_path: Path, label: float) -> None:
    file = written(tmp_path / "a.csv", rating=[label] * 60)
    said = refused(celrec, "train", file, "--task", "binary")
    assert f"every label of a.csv is {label:g}" in said
    said = refused(celrec, "train", file, "--task", "binary", "--positive-from", "1")
    assert "every label" in said


def test_one_class_in_the_test_set_is_no_auc(celrec: CommandLine, tmp_path: Path) -> None:
    labels = [n % 2 for n in range(40)] + [1] * 20
    file = written(tmp_path / "a.csv", rating=labels)
    # fmt: off
    said = refused(
        celrec, "train", file, "--task", "binary", "--time-col", "timestamp", "--partition",
        "time", "--rows", "4", "--epochs", "1", "--out", tmp_path / "run",
    )
    # fmt: on
    assert "AUC" in said
    assert "class" in said


def test_too_few_interactions_to_divide(celrec: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    frame().head(1).write_csv(file)
    assert "leaves no interaction for" in refused(celrec, "train", file)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0", "max_clusters is 0"),
        ("1", "max_clusters is 1: every entity would share one vector"),
        ("8", "max_clusters is 8, more than the 7 entities"),
        ("-3", "max_clusters is -3"),
    ],
)
def test_rows_that_do_not_fit(celrec: CommandLine, tmp_path: Path, rows: str, message: str) -> None:
    file = written(tmp_path / "a.csv")
    said = refused(celrec, "train", file, "--rows", rows)
    assert f"clustered table of 7 users: {message}" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "ratings"], "task.kind is 'ratings'; did you mean 'rating'?"),
        (["--model", "gfm"], "model.kind is 'gfm'; did you mean 'gmf'?"),
        (["--embedding", "hash"], "[embedding]: kind is 'hash'; did you mean 'hashed'?"),
        (["--partition", "leave-one-out"], "did you mean 'leave-last-out'?"),
        (["--optimizer", "adm"], "did you mean 'adam'?"),
        (["--epochs", "0"], "epochs is 0"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--seed", "-1"], "seed is -1"),
        (["--test-share", "1.5"], "test_share is 1.5"),
        (["--embedding", "full", "--rows", "8"], "a full table has one row for every entity"),
        (["--embedding", "full", "--rows", "auto"], "a full table has one row for every entity"),
        (["--embedding", "hashed", "--rows", "auto"], "a hashed table cannot choose its number"),
        (["--rows", "many"], "embedding.user_rows is 'many'; wanted an integer or 'auto'"),
        (["--partition", "time"], "needs times"),
        (["--positive-from", "4"], "choose the task binary"),
        (["--patience", "2", "--merge-validation"], "patience is 2, but there are no validation"),
        (["--blend", "0"], "[encoding]: blend is 0; wanted an integer from 1 to 64"),
        (["--blend", "65"], "[encoding]: blend is 65; wanted an integer from 1 to 64"),
        (["--temperature", "0"], "[encoding.blend_rule]: temperature is 0"),
        (["--bytes-per-entity", "0"], "[encoding]: bytes_per_entity is 0"),
        (["--personal", "--bytes-per-entity", "9"], "personal and bytes_per_entity are both given"),
        (["--blend", "2", "--bytes-per-entity", "9"], "leave one of them out"),
        (["--personal", "--model", "nmf"], "choose another model, or blends alone"),
        (["--bytes-per-entity", "99", "--model", "nmf"], "choose another model, or blends alone"),
        (["--blend", "4", "--embedding", "full"], "but the embedding is full; leave out --blend"),
        (["--temperature", "2", "--embedding", "hashed"], "but the embedding is hashed; leave out"),
        (["--personal", "--embedding", "full"], "are for clustered tables, but the embedding is f"),
    ],
)
def test_options_out_of_range(
    celrec: CommandLine, tmp_path: Path, options: list[str], message: str
) -> None:
    file = written(tmp_path / "a.csv")
    assert message in refused(celrec, "train", file, "--out", tmp_path / "run", *options)


def test_a_budget_that_rows_and_codes_exceed(celrec: CommandLine, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv")
    options = ["--rows", "4", "--epochs", "2", "--out", tmp_path / "run"]
    said = refused(celrec, "train", file, *options, "--bytes-per-entity", "5")
    assert "bytes_per_entity is 5, but rows and hard codes alone take" in said
    assert "raise it, or take fewer clusters" in said
    assert not (tmp_path / "run" / "history.jsonl").exists()  # nothing was trained in vain


def test_a_loss_that_is_no_number(celrec: CommandLine, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv")
    # fmt: off
    said = refused(
        celrec, "train", file, "--optimizer", "sgd", "--learning-rate", "1e30", "--rows", "4",
        "--batch-size", "10", "--out", tmp_path / "run",
    )
    # fmt: on
    assert "loss is nan" in said or "loss is inf" in said
    assert "learning rate" in said


def test_a_config_file_with_mistakes(celrec: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    assert "cannot be read as TOML" in refused(celrec, "train", "--config", file)
    file.write_text("[data]\nsource = 'ml-100k'\n[training]\nepoch = 3\n")
    assert "did you mean 'epochs'?" in refused(celrec, "train", "--config", file)


def test_nothing_to_train_on(celrec: CommandLine) -> None:
    assert "celrec train ml-100k" in refused(celrec, "train")


def test_resuming_takes_no_other_option(celrec: CommandLine, copied_run: Path) -> None:
    said = refused(celrec, "train", "--resume", copied_run, "--epochs", "99")
    assert "no other option" in said


# --- run folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["evaluate"], ["inspect"], ["report"], ["train", "--resume"]], ids=" ".join
)
def test_a_folder_that_is_no_run(celrec: CommandLine, tmp_path: Path, command: list[str]) -> None:
    out = ["--out", tmp_path / "page.html"] if command == ["report"] else []
    assert str(tmp_path) in refused(celrec, *command, tmp_path, *out)


def test_a_run_is_not_overwritten_unasked(celrec: CommandLine, copied_run: Path) -> None:
    source = write_planted(copied_run.parent / "data.parquet")
    said = refused(celrec, "train", source, "--out", copied_run)
    assert f"--resume {copied_run}" in said
    assert "--overwrite" in said


def test_data_that_changed_or_are_gone(
    celrec: CommandLine, copied_run: Path, trained: Path, tmp_path: Path
) -> None:
    other = write_planted(tmp_path / "other.parquet", num_interactions=500)
    said = refused(celrec, "evaluate", copied_run, "--data", other)
    assert "have changed since it was trained" in said
    config = copied_run / "config.toml"
    config.write_text(config.read_text().replace(str(trained), "/nowhere"))
    assert "/nowhere/data.parquet" in refused(celrec, "evaluate", copied_run)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_shape(path: Path) -> None:
    arrays, manifest = load_arrays(path)
    name = next(name for name in arrays if name.endswith("user_embedding.weight"))
    save_arrays(path, {**arrays, name: arrays[name][:2]}, manifest)


def hostile_header(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def pickled(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'echo owned'\ntR.")


@pytest.mark.parametrize("damage", [truncated, of_another_shape, hostile_header, pickled])
def test_a_damaged_checkpoint(
    celrec: CommandLine, copied_run: Path, damage: Callable[[Path], None]
) -> None:
    for name in ("last.safetensors", "best.safetensors", "encoded.safetensors"):
        damage(copied_run / name)
    for command in (["evaluate"], ["inspect"]):
        said = refused(celrec, *command, copied_run)
        assert "safetensors" in said or "the checkpoint is of another model" in said
    (copied_run / "metrics.json").unlink()  # so that there is something to resume
    refused(celrec, "train", "--resume", copied_run)


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: both are an OSError in the write."""
    source, run = write_planted(tmp_path / "data.parquet"), tmp_path / "run"
    options = ["--epochs", "2", "--rows", "4", "--width", "300", "--out", str(run)]
    command = [sys.executable, "-m", "celrec.cli", "train", str(source), *options]
    limited = ["bash", "-c", 'ulimit -f 8 && exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "last.safetensors could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    resumed = subprocess.run(
        [*command[:4], "--resume", str(run)], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr


def test_a_page_that_cannot_be_written(celrec: CommandLine, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "page.html"
    assert "page.html" in refused(celrec, "report", trained / "seed0", "--out", page)


def test_a_table_that_does_not_exist(celrec: CommandLine, trained: Path) -> None:
    said = refused(celrec, "inspect", trained / "seed0", "--table", "items")
    assert "--table is 'items'; wanted 'user' or 'item'" in said
    said = refused(celrec, "inspect", trained / "seed0", "--typical", "best")
    assert "typical is 'best'" in said


# --- the command line itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["trian"], ["train", "--nonsense"], ["train", "--epochs", "many"]]
)
def test_usage_errors(celrec: CommandLine, arguments: list[str]) -> None:
    done = celrec(*arguments)
    assert done.status == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("position", [0, 1])
def test_debug_shows_where_an_error_came_from(celrec: CommandLine, position: int) -> None:
    arguments = ["train", "nowhere.csv"]
    arguments.insert(position, "--debug")
    done = celrec(*arguments)
    assert done.status == 2
    assert "Traceback" in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (ModuleNotFoundError("no", name="plotly.graph_objects"), "pip install 'celrec[report]'"),
        (ModuleNotFoundError("no", name="polars"), "pip install 'celrec[data]'"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_machine_lacks_is_explained(
    celrec: CommandLine, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert message in refused(celrec, "demo")


def test_our_own_mistakes_are_not_hidden(
    celrec: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        celrec("demo")
