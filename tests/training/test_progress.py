"""The progress bar shows what matters, and history lines depend on nothing else."""

import io
import sys

import pytest
from rich.console import Console

from celrec.errors import MissingExtraError
from celrec.training.progress import RichProgress
from tests.training.making import make_trainer, planted


@pytest.mark.parametrize(("task", "figure"), [("binary", "auc 0."), ("rating", "mse ")])
def test_bar_shows_epoch_loss_figure_clusters_and_bytes(task, figure):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    trainer = make_trainer(task, progress=RichProgress(console))
    result = trainer.fit(*planted(task)[:2])
    last = result.history[-1]
    shown = text.getvalue()
    assert "epoch 5/5" in shown
    assert f"loss {last['train_loss']:.4f}" in shown
    assert figure in shown
    assert " + ".join(map(str, last["clusters"].values())) + " clusters" in shown
    assert f"{last['total_bytes']:,} bytes" in shown


def test_bar_without_clusters_or_validation_shows_the_rest():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    make_trainer(max_clusters=None, progress=RichProgress(console)).fit(planted()[0])
    assert "clusters" not in text.getvalue()
    assert "auc" not in text.getvalue()
    assert "bytes" in text.getvalue()


def test_bar_goes_to_standard_error_and_leaves_standard_output_to_results(capsys):
    make_trainer(progress=RichProgress()).fit(planted()[0])
    assert capsys.readouterr().out == ""


def test_missing_rich_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(MissingExtraError, match=r"pip install celrec\[train\]"):
        RichProgress()
