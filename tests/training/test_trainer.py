"""What the trainer does in an epoch, and what it keeps."""

import itertools
import json
import re

import pytest
import torch
from torch import nn

from celrec.checkpoint import save_state
from celrec.core.cluster_optimizer import ClusterSchedule
from celrec.core.memory import memory_report
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, CheckpointError, LossError, MetricError
from celrec.history import read_history
from celrec.losses import BinaryCrossEntropy, SquaredError
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF
from celrec.models.nmf import NMF
from celrec.training.evaluation import evaluate_model, predict
from celrec.training.progress import Silence
from celrec.training.trainer import OPTIMIZERS, Trainer, TrainingOptions, load_trained
from tests.training.making import (
    EPOCHS,
    assert_same_state,
    make_trainer,
    planted,
    state_of,
)


class Collected(Silence):
    def __init__(self):
        self.calls, self.reports = [], []

    def start(self, **counts):
        self.calls.append(("start", counts))

    def on_batch(self, epoch, batch):
        self.calls.append(("batch", epoch, batch))

    def on_epoch(self, report):
        self.calls.append(("epoch", report.epoch))
        self.reports.append(report)

    def stop(self):
        self.calls.append(("stop",))


# --- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "rating"])
@pytest.mark.parametrize("max_clusters", [6, None])
def test_planted_data_are_learned(task, max_clusters):
    train, validation, test = planted(task)
    trainer = make_trainer(task, max_clusters=max_clusters, epochs=15, learning_rate=0.03)
    trainer.fit(train, validation)
    found = evaluate_model(trainer.model, test, task=task)
    constant = make_trainer(task).objective.best_constant(torch.tensor(train.label))
    variance = float((test.label - constant).var())
    if task == "binary":
        assert found["auc"] > 0.9
    else:
        assert found["mse"] < 0.25 * variance


def test_only_clustered_models_have_rounds():
    train, _, _ = planted()
    assert make_trainer(max_clusters=None).clusters is None
    result = make_trainer(max_clusters=None).fit(train)
    assert all(line["events"] == [] and line["clusters"] == {} for line in result.history)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(optimizer):
    train, _, _ = planted()
    rate = {"sgd": 2.0, "adagrad": 0.1}.get(optimizer, 0.02)
    result = make_trainer(optimizer=optimizer, learning_rate=rate, weight_decay=0.0).fit(train)
    assert result.history[-1]["train_loss"] < 0.9 * result.history[0]["train_loss"]


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    train, validation, _ = planted()
    runs = []
    for seed in (0, 0, 1):
        trainer = make_trainer(seed=seed)
        runs.append((trainer.fit(train, validation).history, state_of(trainer)))
    assert runs[0][0] == runs[1][0]
    assert_same_state(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_every_epoch_sees_every_sample_once_in_another_order():
    train, _, _ = planted()
    seen = []

    class Watching(GMF):
        def forward(self, user, item):
            if self.training:
                seen.append(torch.stack([user, item], 1))
            return super().forward(user, item)

    make_trainer(model_class=Watching, max_clusters=None, epochs=2).fit(train)
    samples = torch.cat(seen)
    first, second = samples[: len(train)], samples[len(train) :]
    assert not torch.equal(first, second)
    expected = sorted(zip(train.user.tolist(), train.item.tolist(), strict=True))
    for epoch in (first, second):
        assert sorted(map(tuple, epoch.tolist())) == expected


def test_learning_rate_drops_once():
    train, _, _ = planted()
    collected = Collected()
    options = {"learning_rate": 0.01, "lr_drop": 0.1, "lr_drop_from": 0.5}
    make_trainer(epochs=4, progress=collected, **options).fit(train)
    rates = [report.learning_rate for report in collected.reports]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_the_penalty_shortens_the_vectors_looked_up_and_leaves_the_reported_loss_alone():
    train, _, _ = planted()
    lengths, first_losses = [], []
    for l2 in (0.0, 0.1):
        trainer = make_trainer(max_clusters=None, l2=l2, weight_decay=0.0)
        result = trainer.fit(train)
        lengths.append(float(trainer.model.user_embedding.weight.detach().square().sum()))
        first_losses.append(result.history[0]["train_loss"])
    assert lengths[1] < 0.8 * lengths[0]
    assert first_losses[1] == pytest.approx(first_losses[0], rel=0.1)


def test_reported_loss_is_the_mean_over_samples_whatever_the_batches():
    """With a vanishing learning rate every batch sees the same model."""
    train, _, _ = planted()
    losses = []
    for batch_size in (len(train), 97):
        trainer = make_trainer(
            max_clusters=None, epochs=1, batch_size=batch_size, learning_rate=1e-12
        )
        losses.append(trainer.fit(train).history[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# --- what models and objectives are given ----------------------------------------------------


def test_biased_mf_starts_at_the_mean_label():
    train, _, _ = planted("rating")
    trainer = make_trainer("rating")
    trainer.fit(train)
    assert float(trainer.model.offset) == pytest.approx(train.label.mean(), rel=1e-5)


def test_binary_offset_is_the_log_odds():
    train, _, _ = planted()
    trainer = make_trainer(model_class=BiasedMF, max_clusters=None)
    trainer.fit(train)
    share = float(torch.sigmoid(trainer.model.offset))
    assert share == pytest.approx(train.label.mean(), abs=0.001)


def test_nmf_is_nonnegative_after_every_step():
    train, _, _ = planted("rating")

    class Checked(NMF):
        def forward(self, user, item):
            assert all(bool((p >= 0).all()) for p in self.parameters())
            return super().forward(user, item)

    trainer = make_trainer("rating", model_class=Checked, max_clusters=None, learning_rate=0.2)
    trainer.fit(train)
    assert any(bool((p == 0).any()) for p in trainer.model.parameters()), "projection must bite"


def test_rounds_see_losses_in_nats_of_the_present_noise():
    """Where s^2 is the training MSE of this very moment, the mean of the nats is one half."""
    train, _, _ = planted("rating")
    trainer = make_trainer("rating")
    means = []
    run_round = trainer.clusters.round

    def watched(batches):
        losses = torch.cat([trainer._per_sample_loss(batch).detach() for batch in batches])
        assert len(losses) == len(train)
        means.append(float(losses.double().mean()))
        return run_round(batches)

    trainer.clusters.round = watched
    trainer.fit(train)
    assert means == pytest.approx([0.5] * 3, rel=1e-4)


def test_schedule_decides_which_epochs_have_rounds():
    train, _, _ = planted()
    for schedule, expected in (
        (ClusterSchedule(every=2, settle_epochs=0), [2, 4]),
        (ClusterSchedule(every=1, settle_epochs=4), [1]),
    ):
        collected = Collected()
        trainer = make_trainer(progress=collected)
        trainer.clusters.schedule = schedule
        trainer.fit(train)
        assert [report.epoch for report in collected.reports if report.events] == expected


# --- what is kept ----------------------------------------------------------------------------


def test_history_says_what_each_epoch_did(tmp_path):
    train, validation, _ = planted()
    trainer = make_trainer(run_dir=tmp_path)
    result = trainer.fit(train, validation)
    lines = read_history(tmp_path / "history.jsonl")
    assert lines == result.history
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert set(lines[0]) == {
        "epoch", "learning_rate", "train_loss", "validation", "clusters",
        "table_bytes", "total_bytes", "events",
    }  # fmt: skip
    assert set(lines[0]["validation"]) == {"num_events", "auc", "log_loss"}
    sizes = [line["clusters"]["user_embedding"] for line in lines]
    assert sizes[0] > 1
    assert sizes == sorted(sizes)
    memory = memory_report(make_trainer().model)
    assert lines[-1]["table_bytes"] == 4 * 4 * sum(lines[-1]["clusters"].values())
    assert lines[-1]["total_bytes"] - lines[-1]["table_bytes"] == memory.code_bytes
    splits = [event for line in lines for event in line["events"] if event["kind"] == "split"]
    reclaimed = [event for line in lines for event in line["events"] if event["kind"] == "reclaim"]
    assert len(splits) - len(reclaimed) == sum(lines[-1]["clusters"].values()) - 2


def test_two_runs_write_the_same_bytes_but_for_the_clock(tmp_path):
    train, validation, _ = planted()
    for name in ("first", "second"):
        make_trainer(run_dir=tmp_path / name).fit(train, validation)
    for name in ("history.jsonl", "last.safetensors", "best.safetensors"):
        first, second = (tmp_path / run / name for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name
    timing = read_history(tmp_path / "first" / "timing.jsonl")
    assert all(
        line["train_seconds"] > 0 and line["round_seconds"] >= 0 and line["evaluation_seconds"] > 0
        for line in timing
    )


@pytest.mark.parametrize("has_folder", [True, False])
@pytest.mark.parametrize("task", ["binary", "rating"])
def test_the_model_of_the_best_epoch_is_kept(tmp_path, task, has_folder):
    train, validation, _ = planted(task, num_interactions=600)
    trainer = make_trainer(
        task,
        run_dir=tmp_path if has_folder else None,
        max_clusters=None,
        epochs=60,
        learning_rate=0.3,
    )
    result = trainer.fit(train, validation)
    name, choose = ("auc", max) if task == "binary" else ("mse", min)
    figures = [line["validation"][name] for line in result.history]
    assert result.best_epoch == figures.index(choose(figures)) + 1 < 60, "must overfit by then"
    assert evaluate_model(trainer.model, validation, task=task)[name] == choose(figures)
    assert not trainer.model.training
    if has_folder:
        again = make_trainer(task, max_clusters=None).model
        assert load_trained(again, tmp_path) == result.best_epoch
        assert torch.equal(predict(again, validation), predict(trainer.model, validation))


def test_without_validation_the_last_model_is_kept(tmp_path):
    train, _, _ = planted()
    trainer = make_trainer(run_dir=tmp_path)
    result = trainer.fit(train)
    assert (result.best_epoch, result.num_epochs) == (None, EPOCHS)
    assert not (tmp_path / "best.safetensors").exists()
    again = make_trainer(seed=1).model
    assert load_trained(again, tmp_path) == EPOCHS
    assert torch.equal(predict(again, train), predict(trainer.model, train))


def test_patience_ends_a_run_that_no_longer_improves():
    train, validation, _ = planted(num_interactions=600)
    options = {"max_clusters": None, "epochs": 60, "learning_rate": 0.1}
    whole = make_trainer(**options).fit(train, validation)
    stopped = make_trainer(patience=3, **options).fit(train, validation)
    assert stopped.num_epochs == stopped.best_epoch + 3 < 60
    assert stopped.history == whole.history[: stopped.num_epochs]


def test_loading_a_run_that_is_not_there_or_not_whole_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_trained(make_trainer().model, tmp_path)
    save_state(tmp_path / "best.safetensors", {"model": 3}, kind="best")
    with pytest.raises(CheckpointError, match="damaged: KeyError"):
        load_trained(make_trainer().model, tmp_path)


# --- progress --------------------------------------------------------------------------------


def test_progress_is_told_of_every_step_in_order():
    train, _, _ = planted(num_interactions=1000)  # 600 for training: 3 batches of 256
    collected = Collected()
    make_trainer(progress=collected, epochs=2).fit(train)
    counts = {"num_epochs": 2, "num_finished": 0, "num_batches": 3, "task": "binary"}
    steps = [[("batch", e, b) for b in (1, 2, 3)] + [("epoch", e)] for e in (1, 2)]
    assert collected.calls == [("start", counts), *itertools.chain(*steps), ("stop",)]


def test_progress_is_stopped_when_training_fails():
    class Failing(Collected):
        def on_epoch(self, report):
            raise KeyboardInterrupt

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(progress=failing).fit(planted()[0])
    assert failing.calls[-1] == ("stop",)


# --- mistakes --------------------------------------------------------------------------------


def test_bad_loss_names_epoch_batch_and_what_to_check():
    train, _, _ = planted()

    class Breaking(GMF):
        steps = 0

        def forward(self, user, item):
            Breaking.steps += self.training
            found = super().forward(user, item)
            return found * float("inf") if Breaking.steps == 14 else found  # 10 steps per epoch

    trainer = make_trainer(model_class=Breaking, max_clusters=None)
    with pytest.raises(LossError, match=r"loss is nan in epoch 2, batch 4; .*learning rate"):
        trainer.fit(train)


def test_bad_loss_names_the_table_with_bad_rows():
    train, _, _ = planted()
    trainer = make_trainer(max_clusters=None, batch_size=8)
    trainer.model.item_embedding.weight.data[7] = float("nan")
    with pytest.raises(LossError, match=r"in epoch 1, batch \d+; .*item_embedding\.weight"):
        trainer.fit(train)


def test_a_run_that_breaks_keeps_its_last_good_checkpoint(tmp_path):
    train, _, _ = planted()
    trainer = make_trainer(run_dir=tmp_path, max_clusters=None)

    class Poisoning(Silence):
        def on_epoch(self, report):
            if report.epoch == 2:
                trainer.model.user_embedding.weight.data.fill_(float("nan"))

    trainer.progress = Poisoning()
    with pytest.raises(LossError, match=r"in epoch 3, batch 1; .*user_embedding\.weight"):
        trainer.fit(train)
    again = make_trainer(max_clusters=None).model
    assert load_trained(again, tmp_path) == 2
    assert bool(torch.isfinite(predict(again, train)).all())


def test_prediction_of_another_shape_is_refused():
    class Column(GMF):
        def forward(self, user, item):
            return super().forward(user, item).unsqueeze(1)

    with pytest.raises(LossError, match=r"predicts shape \(256, 1\) .*wanted \(256,\)"):
        make_trainer(model_class=Column, max_clusters=None).fit(planted()[0])


@pytest.mark.parametrize("which", [0, 1])
def test_labels_of_one_class_are_refused_before_training(which):
    parts = planted()[:2]
    parts[which] = parts[which].take(parts[which].label == 1)
    trainer = make_trainer()
    before = state_of(trainer)
    with pytest.raises(MetricError, match="AUC is undefined: every label is 1"):
        trainer.fit(*parts)
    assert_same_state(state_of(trainer), before)


def test_ratings_are_refused_by_the_binary_task():
    with pytest.raises(MetricError, match="the binary task wants 0 and 1"):
        make_trainer("binary").fit(planted("rating")[0])


def test_patience_without_validation_is_refused():
    with pytest.raises(ArgumentError, match="patience is 2, but there are no validation data"):
        make_trainer(patience=2).fit(planted()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"round_batch_size": -1}, "round_batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"lr_drop": 1.5}, "lr_drop is 1.5"),
        ({"lr_drop_from": -0.1}, "lr_drop_from is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"l2": -1.0}, "l2 is -1"),
        ({"patience": 0}, "patience is 0"),
        ({"optimizer": "adanw"}, "did you mean 'adamw'"),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        TrainingOptions(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 9}, "its epochs is 5, this run's is 9"),
        ({"seed": 4}, "its seed is 0, this run's is 4"),
        ({"learning_rate": 0.5}, "its learning_rate is 0.02, this run's is 0.5"),
        ({"max_clusters": None}, "its clusters is 'ClusterSchedule"),
        ({"max_clusters": 7}, r"another model .*weight is float32 \(6, 4\) in the checkpoint"),
        ({"model_class": BiasedMF}, "its model is 'GMF', this run's is 'BiasedMF'"),
    ],
)
def test_folder_of_another_run_is_refused_and_left_alone(tmp_path, change, message):
    train, validation, _ = planted()
    make_trainer(run_dir=tmp_path).fit(train, validation)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        make_trainer(run_dir=tmp_path, **change).fit(train, validation)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_folder_of_a_run_on_other_data_is_refused(tmp_path):
    train, validation, test = planted()
    make_trainer(run_dir=tmp_path).fit(train, validation)
    with pytest.raises(CheckpointError, match="its train is "):
        make_trainer(run_dir=tmp_path).fit(test, validation)
    with pytest.raises(CheckpointError, match=r"its validation is .*this run's is None"):
        make_trainer(run_dir=tmp_path).fit(train)


def test_model_with_one_user_and_one_item_trains():
    train = planted(num_interactions=100)[0]
    one = Vocabulary.from_values([7])
    tiny = type(train)(user=[0, 0], item=[0, 0], label=[0, 1], users=one, items=one)
    model = GMF(nn.Embedding(1, 2), nn.Embedding(1, 2))
    result = Trainer(model, BinaryCrossEntropy(), TrainingOptions(epochs=2)).fit(tiny, tiny)
    assert result.history[-1]["validation"]["auc"] == 0.5


def test_squared_error_of_a_perfect_fit_survives_its_rounds():
    """Noise variance 0 would divide by zero."""
    train, _, _ = planted("rating")
    flat = type(train)(
        user=train.user, item=train.item, label=[3.0] * len(train),
        users=train.users, items=train.items,
    )  # fmt: skip
    trainer = make_trainer("rating")
    for p in trainer.model.parameters():
        p.data.zero_()
    assert isinstance(trainer.objective, SquaredError)
    result = trainer.fit(flat)
    assert result.history[-1]["train_loss"] < 1e-6


def test_timing_is_beside_the_history_and_not_in_it(tmp_path):
    train, _, _ = planted()
    make_trainer(run_dir=tmp_path).fit(train)
    assert not re.search("seconds|time", (tmp_path / "history.jsonl").read_text())
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in timing] == list(range(1, EPOCHS + 1))
