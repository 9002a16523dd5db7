"""Training on a GPU: every kind of table, as on the CPU. Skipped where PyTorch sees no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from celrec.baselines.registry import all_baselines
from celrec.errors import ConfigError
from celrec.experiments.config import RunConfig
from celrec.experiments.run import SavedRun, check_device, resume_run, train_run
from celrec.experiments.suite import train_once
from celrec.training.evaluation import predict
from tests.experiments.making import config, write_planted

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

CLUSTERED: dict[str, dict[str, Any]] = {
    "hard": {"encoding": {"blend": 1}},
    "blended": {"encoding": {"blend": 4}},
    "personal": {"encoding": {"personal": True}},
    "auto": {"embedding": {"user_rows": "auto", "item_rows": "auto"}},
    "paper-cel": {"embedding": {"kind": "paper-cel"}, "encoding": {"blend": 1}},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("data") / "planted.parquet")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device is 'cuda:99'.*wanted one of cpu"):
        check_device("cuda:99")
    with pytest.raises(ConfigError, match="device is 'toaster'"):
        check_device("toaster")


@needs_gpu
@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters_train_on_a_gpu_as_well_as_on_the_cpu(
    name: str, source: Path, tmp_path: Path
) -> None:
    chosen = config(source, **CLUSTERED[name])
    found = {
        device: train_run(chosen, tmp_path / device, device=device) for device in ("cpu", "cuda")
    }
    # Sums in another order change which cluster some entity goes to, so figures differ a little.
    assert found["cuda"]["mse"] == pytest.approx(found["cpu"]["mse"], rel=0.1)
    assert found["cuda"]["memory"].keys() == found["cpu"]["memory"].keys()
    run = SavedRun.open(tmp_path / "cuda")
    assert run.facts["hardware"]["device"] == "cuda"
    # What was trained there serves here.
    _, parts = run.data()
    assert predict(run.model(), parts.test).isfinite().all()


@needs_gpu
@pytest.mark.parametrize("kind", [*all_baselines(), "clustered", "full"])
def test_every_method_of_a_suite_trains_on_a_gpu(kind: str, source: Path) -> None:
    values = {
        "data": {"source": str(source)},
        "task": {"kind": "rating"},
        "model": {"width": 8},
        "embedding": {"kind": kind},
        "training": {"epochs": 5, "batch_size": 512},
    }
    budget = None if kind == "full" else 0.5
    found = {device: train_once(values, budget, device) for device in ("cpu", "cuda")}
    assert found["cuda"].figures["mse"] == pytest.approx(found["cpu"].figures["mse"], rel=0.15)
    sizes = [one.memory["total_bytes"] for one in found.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # pruning and blends follow the training


@needs_gpu
def test_a_stopped_run_goes_on_where_it_was_trained(source: Path, tmp_path: Path) -> None:
    chosen: RunConfig = config(source)
    whole = train_run(chosen, tmp_path / "run", device="cuda")
    (tmp_path / "run" / "metrics.json").unlink()
    again = resume_run(tmp_path / "run")
    assert again["mse"] == pytest.approx(whole["mse"], rel=1e-4)
