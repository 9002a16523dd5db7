"""What every command does, and that its JSON says the same as its folders."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from statistics import mean, stdev

import pytest

import celrec.data.catalog as catalog
import celrec.experiments.demo as demo
from tests.cli.making import CommandLine
from tests.experiments.making import ml_100k, write_planted

COLUMNS = ["--time-col", "timestamp", "--title-col", "title"]
SHORT = ["--epochs", "2", "--width", "4", "--rows", "4", "--batch-size", "256"]


def test_train_evaluate_and_inspect_agree(celrec: CommandLine, tmp_path: Path) -> None:
    source, run = write_planted(tmp_path / "data.parquet"), tmp_path / "run"
    trained = celrec("train", source, *COLUMNS, *SHORT, "--out", run, "--json")
    assert trained.status == 0
    assert trained.json["run"] == str(run)
    evaluated = celrec("evaluate", run, "--json")
    (row,) = evaluated.json["runs"]
    assert row["mse"] == trained.json["mse"]
    assert row["memory"] == trained.json["memory"]
    inspected = celrec("inspect", run, "--json").json
    rows_of = {table["name"]: table["num_rows"] for table in row["memory"]["tables"]}
    assert {table["table"]: table["num_clusters"] for table in inspected["tables"]} == rows_of


def test_options_reach_the_configuration(celrec: CommandLine, tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data.parquet")
    # fmt: off
    done = celrec(
        "train", source, "--out", tmp_path / "run", "--task", "binary", "--positive-from", "0.5",
        "--drop-rating", "0.25", "--partition", "time", "--test-share", "0.3",
        "--validation-share", "0.2", "--partition-seed", "7", "--model", "neumf", "--width", "5",
        "--embedding", "hashed", "--rows", "9", "--item-rows", "6", "--epochs", "2",
        "--batch-size", "100", "--optimizer", "adagrad", "--learning-rate", "0.01",
        "--weight-decay", "0.1", "--l2", "0.2", "--patience", "1", "--growth-rounds", "3",
        "--settle-epochs", "1", "--seed", "11", *COLUMNS,
    )
    # fmt: on
    assert done.status == 0, done.stderr
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    expected = {
        "task": {"kind": "binary", "positive_from": 0.5, "drop_rating": 0.25},
        "data": {"time": "timestamp", "title": "title"},
        "partition": {"kind": "time", "test_share": 0.3, "validation_share": 0.2, "seed": 7},
        "model": {"kind": "neumf", "width": 5},
        "embedding": {"kind": "hashed", "user_rows": 9, "item_rows": 6},
        "training": {
            "epochs": 2,
            "batch_size": 100,
            "optimizer": "adagrad",
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "l2": 0.2,
            "patience": 1,
        },
    }
    for section, keys in expected.items():
        for key, value in keys.items():
            assert written[section][key] == value, (section, key)
    schedule = written["clusters"]["schedule"]
    assert (schedule["growth_rounds"], schedule["settle_epochs"]) == (3, 1)
    assert written["seed"] == 11


def test_options_win_over_the_file(celrec: CommandLine, tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data.parquet")
    file = tmp_path / "run.toml"
    file.write_text(
        f"seed = 5\n[data]\nsource = '{source}'\n[model]\nwidth = 3\n"
        "[training]\nepochs = 2\n[embedding]\nuser_rows = 4\nitem_rows = 4\n"
    )
    assert celrec("train", "--config", file, "--width", "2", "--out", tmp_path / "run").status == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["seed"], written["model"]["width"], written["training"]["epochs"]) == (5, 2, 2)


def test_merged_validation_trains_for_exactly_the_epochs_given(
    celrec: CommandLine, tmp_path: Path
) -> None:
    source, run = write_planted(tmp_path / "data.parquet"), tmp_path / "run"
    done = celrec("train", source, *COLUMNS, *SHORT, "--merge-validation", "--out", run)
    assert done.status == 0
    facts = json.loads((run / "run.json").read_text())["partition"]
    assert (facts["validation"], facts["train"] + facts["test"]) == (0, 3000)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in history] == [None, None]
    assert not (run / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "blend", "num_personal", "name"),
    [
        (["--blend", "1"], 1, range(1), "clustered"),
        (["--blend", "2", "--temperature", "1"], 2, range(1), "blended"),
        (["--personal"], 1, range(100, 101), "personal"),
        (["--bytes-per-entity", "2.3"], 1, range(1), "personal"),
        (["--bytes-per-entity", "5"], 1, range(1), "personal"),
        (["--bytes-per-entity", "9"], 1, range(100, 101), "personal"),
        (["--bytes-per-entity", "14"], 1, range(100, 101), "personal"),
    ],
)
def test_codes_are_as_asked(
    celrec: CommandLine,
    tmp_path: Path,
    options: list[str],
    blend: int,
    num_personal: range,
    name: str,
) -> None:
    """Of 60 users and 40 items in two clusters each, whose rows take a byte of each entity."""
    source, run = write_planted(tmp_path / "data.parquet"), tmp_path / "run"
    options = [*options, "--epochs", "4", "--merge-validation"]  # to the end, where there are two
    trained = celrec("train", source, *COLUMNS, *SHORT, *options, "--out", run, "--json")
    assert trained.status == 0, trained.stderr
    codes = trained.json["codes"].values()
    assert [code["blend"] for code in codes] == [blend, blend]
    assert sum(code["personal"] for code in codes) in num_personal
    if "--bytes-per-entity" in options:
        assert trained.json["memory"]["total_bytes"] <= float(options[1]) * 100
    evaluated = celrec("evaluate", run, "--json").json
    assert evaluated["runs"][0]["mse"] == trained.json["mse"]
    assert f"biased-mf {name} 4 rows" in evaluated["groups"][0]["label"]
    (run / "metrics.json").unlink()
    resumed = celrec("train", "--resume", run, "--json").json
    assert {**resumed, "seconds": 0} == {**trained.json, "seconds": 0}


def test_runs_get_a_new_folder_where_none_is_given(celrec: CommandLine, tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data.parquet")
    found = [celrec("train", source, *SHORT, "--json").json["run"] for _ in range(2)]
    name = "runs/data-biased-mf-clustered-seed0"
    assert found == [name, f"{name}-2"]
    assert celrec("evaluate", name).status == 0  # from here, by its relative name


def test_resuming_a_finished_run_shows_its_figures(celrec: CommandLine, trained: Path) -> None:
    done = celrec("train", "--resume", trained / "seed0", "--json")
    metrics = json.loads((trained / "seed0" / "metrics.json").read_text())
    assert done.json == {"run": str(trained / "seed0"), **metrics}


def test_evaluating_several_runs_gives_mean_and_deviation(
    celrec: CommandLine, trained: Path
) -> None:
    runs = [trained / "seed0", trained / "seed1"]
    found = celrec("evaluate", *runs, "--json").json
    figures = [row["mse"] for row in found["runs"]]
    assert [row["run"] for row in found["runs"]] == [str(run) for run in runs]
    (group,) = found["groups"]
    assert group["num_runs"] == 2
    assert group["seeds"] == [0, 1]
    assert group["label"] == "data.parquet biased-mf blended 4 rows"
    assert group["mean"]["mse"] == pytest.approx(mean(figures))
    assert group["std"]["mse"] == pytest.approx(stdev(figures))
    assert group["mean"]["coldest_users"]["mse"] is None  # too few events
    shown = celrec("evaluate", *runs).stdout
    assert "2 runs: mse" in shown
    assert f"{mean(figures):.4f} ± {stdev(figures):.4f}" in " ".join(shown.split())


def test_runs_of_different_settings_are_different_groups(
    celrec: CommandLine, trained: Path, tmp_path: Path
) -> None:
    source = trained / "data.parquet"
    assert celrec("train", source, *SHORT, "--out", tmp_path / "b").status == 0
    found = celrec("evaluate", trained / "seed0", tmp_path / "b", "--json").json
    assert [group["num_runs"] for group in found["groups"]] == [1, 1]
    assert found["groups"][0]["std"]["mse"] is None


def test_inspect_shows_titles_as_they_are(celrec: CommandLine, trained: Path) -> None:
    shown = celrec("inspect", trained / "seed0", "--table", "item", "--members", "2").stdout
    assert "clusters of 40 items" in shown
    assert "item [" in shown  # brackets mean nothing to the terminal's markup
    assert "users" not in shown
    (view,) = celrec("inspect", trained / "seed0", "--table", "item", "--json").json["tables"]
    assert f"of 40 items, {view['blend']} in a code" in shown
    assert (
        f"{view['clusters'][0]['size']} members, weight {view['clusters'][0]['weight']:.1f}, "
        in shown
    )


def test_report_is_written_where_asked(celrec: CommandLine, trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = celrec("report", trained / "seed0", trained / "seed1", "--out", page, "--json")
    assert done.json == {"report": str(page)}
    assert "<html" in page.read_text()


def test_data_list_names_the_catalog(
    celrec: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELREC_CACHE", str(tmp_path))
    listed = celrec("data", "list", "--json").json
    assert {row["name"]: row["is_here"] for row in listed} == {"ml-100k": False, "ml-1m": False}
    shown = celrec("data", "list").stdout
    assert "100,000" in shown


def test_data_fetch_says_where_the_data_are(
    celrec: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "fetch", lambda name: tmp_path / name)
    assert celrec("data", "fetch", "ml-100k").stdout == f"ml-100k is in {tmp_path / 'ml-100k'}\n"
    found = celrec("data", "fetch", "ml-100k", "--json").json
    assert found == {"name": "ml-100k", "folder": str(tmp_path / "ml-100k")}


# --- demo ----------------------------------------------------------------------------------------

ROW = [
    "embedding",
    "rows_per_table",
    "auc_mean",
    "auc_std",
    "auc_coldest_users",
    "auc_coldest_items",
    "table_bytes",
    "total_bytes",
    "times_smaller",
    "seconds",
]


@pytest.fixture
def real_demo_data(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"source": str(ml_100k()), "time": "timestamp", "title": "title"}
    monkeypatch.setattr(demo, "DATA", source)


@pytest.mark.slow
@pytest.mark.usefixtures("real_demo_data")
def test_a_quick_demo_writes_rows_and_report_and_can_run_again(
    celrec: CommandLine, tmp_path: Path
) -> None:
    folder, file = tmp_path / "demo", tmp_path / "new" / "rows.json"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    done = celrec("demo", "--quick", "--out", folder, "--json", file)
    assert done.status == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [list(row) for row in rows] == [ROW] * len(rows)
    assert [(row["embedding"], row["rows_per_table"]) for row in rows] == [
        ("full", None),
        ("hashed", 8),
        ("hashed", 19),
        ("clustered", 8),
        ("blended", 8),
        ("personal", 32),
    ]
    assert json.loads((folder / "demo.json").read_text()) == rows
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "<html" in (folder / "report.html").read_text()
    full, hashed, equal_bytes, clustered, blended, personal = rows
    assert full["times_smaller"] == 1
    assert full["table_bytes"] == (943 + 1682) * 32 * 4
    assert hashed["table_bytes"] == hashed["total_bytes"] == 2 * 8 * 32 * 4
    assert clustered["total_bytes"] == clustered["table_bytes"] + 943 + 1682
    assert blended["total_bytes"] > clustered["total_bytes"] + 943 + 1682
    assert personal["total_bytes"] > 34 * (943 + 1635)  # all users and most items have data
    # As many bytes, rounded up to whole rows; the quick demo's clusters stop growing earlier.
    most = 2 * 8 * 32 * 4 + 943 + 1682
    assert most <= equal_bytes["total_bytes"] < most + 2 * 32 * 4

    again = celrec("demo", "--quick", "--out", folder, "--json", "-")
    assert again.status == 0
    for old, new in zip(rows, again.json, strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}
    assert (folder / "notes.txt").read_text() == "mine"
    assert celrec("report", folder, "--out", tmp_path / "again.html").status == 0


def test_every_line_of_the_demo_has_settings_that_ship() -> None:
    settings = demo.shipped_settings()
    names = ["full"]
    names += [f"{kind}-{rows}" for kind in ("hashed", "clustered") for rows in (8, 32, 64)]
    names += [f"hashed-as-clustered-{rows}" for rows in (8, 32, 64)]
    assert sorted(settings) == sorted(names)
    for seed in (0, 1, 2):
        for variant in (demo.Variant("clustered-8", "clustered", 8),):
            config = demo.demo_config(variant, seed)
            assert config.partition.merge_validation
            assert (config.model.width, config.seed) == (32, seed)


def test_the_conclusion_is_made_of_the_figures() -> None:
    def row(embedding: str, rows: int | None, auc: float, total: int) -> dict[str, object]:
        full = {"times_smaller": 336_000 / total}
        return {"embedding": embedding, "rows_per_table": rows, "auc_mean": auc, "auc_std": 0.002,
                "total_bytes": total, **full}  # fmt: skip

    rows = [
        row("full", None, 0.84, 336_000),
        row("hashed", 8, 0.51, 2_048),
        row("hashed", 19, 0.52, 4_864),
        row("clustered", 64, 0.83, 19_009),
        row("clustered", 8, 0.82, 4_673),
        row("blended", 8, 0.825, 17_798),
        row("blended", 32, 0.839, 23_942),
        row("blended", 64, 0.84, 32_134),
        row("personal", 32, 0.85, 101_000),
    ]
    said = demo.conclusion(rows)
    assert said == (
        "Full tables reach an AUC of 0.840 in 336 kB. Clustered tables of 8 rows reach 0.820 and "
        "are 72 times smaller; hashed ones of as many bytes reach 0.520. Blended codes of 32 rows "
        "reach 0.839, 14 times smaller. Personal vectors reach 0.850, 3.3 times smaller."
    )


@pytest.mark.usefixtures("real_demo_data")
def test_a_real_run_of_the_gmf_protocol(celrec: CommandLine, tmp_path: Path) -> None:
    """Sizes of the sets are those that the protocol fixes; half a run is far above chance."""
    run = tmp_path / "run"
    done = celrec(
        "train", ml_100k(), *COLUMNS, "--task", "binary", "--rows", "8", "--epochs", "8",
        "--merge-validation", "--out", run, "--json",
    )  # fmt: skip
    assert done.json["num_events"] == 2 * 943
    assert done.json["auc"] > 0.75
    shutil.rmtree(run)
