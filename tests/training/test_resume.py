"""Law: a run that was stopped at any moment and resumed ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from celrec import checkpoint
from celrec.checkpoint import load_state
from celrec.core.split import GainSplit
from celrec.errors import CheckpointError
from celrec.history import read_history
from celrec.models.neumf import NeuMF
from celrec.training.progress import Silence
from celrec.training.trainer import Trainer
from tests.training.making import (
    EPOCHS,
    NoisyGMF,
    assert_same_state,
    make_trainer,
    planted,
    state_of,
)

RUNS = {
    "clustered": {},
    "clustered rating": {"task": "rating", "optimizer": "adagrad", "l2": 0.01},
    "full": {"max_clusters": None},
    "dropout": {"model_class": NoisyGMF, "max_clusters": None},
    "neumf": {"model_class": NeuMF},
    "early stopping": {"max_clusters": None, "learning_rate": 0.3, "epochs": 40, "patience": 2},
}
FILES = ("history.jsonl", "last.safetensors", "best.safetensors")


def data_of(run):
    return planted(run.get("task", "binary"), num_interactions=800)[:2]


class Stopped(BaseException):
    """Stands in for a kill: nothing in the package catches it."""


class StopAfter(Silence):
    """Stops after so many batches."""

    def __init__(self, num_batches):
        self.left = num_batches

    def on_batch(self, epoch, batch):
        self.left -= 1
        if self.left < 0:
            raise Stopped


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Each kind of run, trained without a stop: (files, final model)."""
    found = {}
    for name, run in RUNS.items():
        folder = tmp_path_factory.mktemp("whole")
        trainer = make_trainer(run_dir=folder, **run)
        trainer.fit(*data_of(run))
        found[name] = ({f: (folder / f).read_bytes() for f in FILES}, state_of(trainer))
    return found


def assert_same_run(folder, trainer, expected):
    files, state = expected
    for name, content in files.items():
        assert (folder / name).read_bytes() == content, name
    assert_same_state(state_of(trainer), state)


@pytest.mark.parametrize("name", RUNS)
def test_run_stopped_in_the_middle_of_epochs_resumes(tmp_path, uninterrupted, name):
    run = RUNS[name]
    for num_batches in (1, 5, 3):  # 2 batches per epoch: before the first checkpoint, then later
        with pytest.raises(Stopped):
            make_trainer(run_dir=tmp_path, progress=StopAfter(num_batches), **run).fit(
                *data_of(run)
            )
    torch.rand(7)  # the process that resumes has its own random past
    trainer = make_trainer(run_dir=tmp_path, **run)
    torch.rand(3)
    result = trainer.fit(*data_of(run))
    assert_same_run(tmp_path, trainer, uninterrupted[name])
    assert result.history == read_history(tmp_path / "history.jsonl")


def test_run_stopped_at_every_single_write_resumes(tmp_path, monkeypatch):
    """Before and after each flush of a file and each renaming, in every epoch."""
    run = {"epochs": 3}
    whole = make_trainer(run_dir=tmp_path / "whole", **run)
    whole.fit(*data_of(run))
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}, state_of(whole)
    num_moments = 0
    for moment in range(1000):
        folder = tmp_path / str(moment)
        left = moment

        def counted(function):
            def stop_or_call(*arguments):
                nonlocal left
                if left == 0:
                    raise Stopped
                left -= 1
                result = function(*arguments)
                if left == 0:
                    raise Stopped
                left -= 1
                return result

            return stop_or_call

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "fsync", counted(os.fsync))
            patch.setattr(Path, "replace", counted(Path.replace))
            trainer = make_trainer(run_dir=folder, **run)
            try:
                trainer.fit(*data_of(run))
            except Stopped:
                num_moments += 1
            else:
                break
        resumed = make_trainer(run_dir=folder, **run)
        resumed.fit(*data_of(run))
        assert_same_run(folder, resumed, expected)
    assert num_moments >= 2 * 5 * 3


def test_stop_between_checkpoint_and_best_model_loses_nothing(tmp_path, uninterrupted, monkeypatch):
    run = RUNS["clustered"]
    num_saved = 0

    def stop(trainer):
        nonlocal num_saved
        num_saved += 1
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_keep_best_model", stop)
        with pytest.raises(Stopped):
            make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))
    assert not (tmp_path / "best.safetensors").exists()
    assert load_state(tmp_path / "last.safetensors", kind="training")["state"]["best_epoch"] == 1
    trainer = make_trainer(run_dir=tmp_path, **run)
    trainer.fit(*data_of(run))
    assert_same_run(tmp_path, trainer, uninterrupted["clustered"])


@pytest.mark.parametrize("name", RUNS)
def test_complete_run_returns_at_once_and_unchanged(tmp_path, uninterrupted, name):
    run = RUNS[name]
    make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))
    trainer = make_trainer(run_dir=tmp_path, progress=StopAfter(0), **run)
    result = trainer.fit(*data_of(run))
    assert_same_run(tmp_path, trainer, uninterrupted[name])
    assert result.num_epochs == len(result.history)


def test_same_trainer_goes_on_after_an_interruption(tmp_path, uninterrupted):
    """As when someone stops a cell of a notebook and runs it again."""
    run = RUNS["clustered"]
    trainer = make_trainer(run_dir=tmp_path, progress=StopAfter(5), **run)
    with pytest.raises(Stopped):
        trainer.fit(*data_of(run))
    trainer.progress = Silence()
    trainer.fit(*data_of(run))
    trainer.fit(*data_of(run))  # and once more, when there is nothing left to do
    assert_same_run(tmp_path, trainer, uninterrupted["clustered"])


def test_rule_of_a_users_own_class_does_not_stop_a_resume(tmp_path, uninterrupted):
    class OwnRule:  # its repr holds an address
        plan = staticmethod(GainSplit().plan)

    run = RUNS["clustered"]
    for progress in (StopAfter(5), Silence()):
        trainer = make_trainer(run_dir=tmp_path, progress=progress, **run)
        trainer.clusters.split_rule = OwnRule()
        with pytest.raises(Stopped) if progress.__class__ is StopAfter else nullcontext():
            trainer.fit(*data_of(run))
    assert_same_state(state_of(trainer), uninterrupted["clustered"][1])


def test_full_disk_during_a_checkpoint_loses_one_epoch_at_most(
    tmp_path, uninterrupted, monkeypatch
):
    run = RUNS["clustered"]
    num_writes = 0

    def full(*arguments, **options):
        nonlocal num_writes
        num_writes += 1
        if num_writes > 4:
            raise OSError(28, "No space left on device")
        return save_file(*arguments, **options)

    save_file = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))
    finished = load_state(tmp_path / "last.safetensors", kind="training")["state"]["epoch"]
    assert 1 <= finished < EPOCHS
    trainer = make_trainer(run_dir=tmp_path, **run)
    trainer.fit(*data_of(run))
    assert_same_run(tmp_path, trainer, uninterrupted["clustered"])


def test_damaged_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    run = RUNS["clustered"]
    make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("random", torch.zeros(3, dtype=torch.uint8)),
        ("clusters", {}),
        ("clusters", None),
        ("state", {"epoch": 1, "odd": 2}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("model", None),
        ("identity", {}),
    ],
)
def test_checkpoint_with_a_foreign_part_is_refused(tmp_path, part, value):
    run = RUNS["clustered"]
    make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))
    last = tmp_path / "last.safetensors"
    saved = load_state(last, kind="training")
    checkpoint.save_state(last, saved | {part: value}, kind="training")
    with pytest.raises(CheckpointError):
        make_trainer(run_dir=tmp_path, **run).fit(*data_of(run))


# --- real signals ----------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.making import make_trainer, planted
from celrec.training.progress import Silence

kill_at_flush = int(sys.argv[2])
flush, num_flushes = os.fsync, 0
def flush_or_die(descriptor):
    global num_flushes
    num_flushes += 1
    if num_flushes == kill_at_flush:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)
os.fsync = flush_or_die

class Talking(Silence):
    def on_batch(self, epoch, batch):
        print(epoch, batch, flush=True)

try:
    trainer = make_trainer(run_dir=Path(sys.argv[1]), progress=Talking(), epochs=int(sys.argv[3]))
    trainer.fit(*planted(num_interactions=800)[:2])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def start(folder, *, kill_at_flush=-1, epochs=EPOCHS):
    arguments = [sys.executable, "-c", PROGRAM, str(folder), str(kill_at_flush), str(epochs)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root)


def test_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, uninterrupted):
    # An epoch flushes history, timing, the checkpoint, its folder, and the best model if it is.
    for kill_at_flush in (1, 9):
        process = start(tmp_path, kill_at_flush=kill_at_flush)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
    trainer = make_trainer(run_dir=tmp_path, **RUNS["clustered"])
    trainer.fit(*data_of(RUNS["clustered"]))
    assert_same_run(tmp_path, trainer, uninterrupted["clustered"])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_signal_in_the_middle_of_training_leaves_a_resumable_run(tmp_path, sent):
    epochs = 30
    process = start(tmp_path, epochs=epochs)
    while not process.stdout.readline().startswith("3 "):
        assert process.poll() is None
    time.sleep(0.013)  # somewhere inside an epoch
    process.send_signal(sent)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert ("interrupted" in output) == (sent == signal.SIGINT)
    assert len(read_history(tmp_path / "history.jsonl")) < epochs

    whole, resumed = tmp_path / "whole", make_trainer(run_dir=tmp_path, epochs=epochs)
    resumed.fit(*planted(num_interactions=800)[:2])
    expected = make_trainer(run_dir=whole, epochs=epochs)
    expected.fit(*planted(num_interactions=800)[:2])
    assert_same_state(state_of(resumed), state_of(expected))
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
