"""Evaluation agrees with predicting by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from celrec.metrics import evaluate
from celrec.training.evaluation import counts_in, evaluate_model, predict
from tests.training.making import make_trainer, planted


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_batch_size_changes_no_prediction(batch_size):
    test = planted(num_interactions=300)[2]
    model = make_trainer().model
    expected = model(torch.tensor(test.user), torch.tensor(test.item)).detach()
    torch.testing.assert_close(predict(model, test, batch_size=batch_size), expected)


def test_prediction_is_in_evaluation_mode_and_puts_every_module_back():
    test = planted(num_interactions=300)[2]
    inner = make_trainer().model

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.noise = inner, nn.Dropout(0.5)

        def forward(self, user, item):
            return self.noise(self.inner(user, item))

    model = Noisy()
    model.inner.eval()
    assert torch.equal(predict(model, test), predict(inner, test))
    assert not predict(model, test).requires_grad
    assert (model.training, model.noise.training, model.inner.training) == (True, True, False)


def test_counts_are_how_often_training_saw_user_and_item():
    train, _, test = planted(num_interactions=300)
    user_counts, item_counts = counts_in(train, test)
    for event in range(len(test)):
        assert user_counts[event] == np.sum(train.user == test.user[event])
        assert item_counts[event] == np.sum(train.item == test.item[event])


@pytest.mark.parametrize("task", ["binary", "rating"])
def test_model_is_evaluated_on_all_and_on_cold_events(task):
    train, _, test = planted(task, num_interactions=6000)
    model = make_trainer(task).model
    prediction = predict(model, test).double().numpy()
    user_counts, item_counts = counts_in(train, test)
    expected = evaluate(
        prediction, test.label, task=task, user_counts=user_counts, item_counts=item_counts
    )
    assert evaluate_model(model, test, task=task, train=train) == expected
    assert expected["coldest_users"]["num_events"] == 120
    plain = evaluate_model(model, test, task=task)
    assert plain == {name: expected[name] for name in plain}
