"""Short runs on real data stay above a floor that a broken trainer, model or round would miss."""

from pathlib import Path

import pytest
import torch

from celrec.core.cluster_optimizer import ClusterSchedule
from celrec.core.embedding import ClusteredEmbedding
from celrec.core.memory import memory_report
from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.partition import leave_last_out, random_partition
from celrec.data.readers import read_interactions
from celrec.losses import BinaryCrossEntropy, SquaredError
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF
from celrec.training.evaluation import evaluate_model
from celrec.training.trainer import Trainer, TrainingOptions

ML_100K = Path(__file__).resolve().parents[3] / "shared" / "data" / "ml_100k.parquet"


@pytest.fixture(scope="module")
def ratings() -> Interactions:
    if not ML_100K.is_file():
        pytest.skip(f"{ML_100K} is not at hand")
    return read_interactions(ML_100K, timestamp="timestamp")


def clustered(model_class, interactions, factors, max_clusters):
    torch.manual_seed(0)
    widths = model_class.layer_widths(factors)
    sizes = {"user_embedding": interactions.num_users, "item_embedding": interactions.num_items}
    model = model_class(
        **{
            name: ClusteredEmbedding(sizes[name], width, max_clusters=max_clusters)
            for name, width in widths.items()
        }
    )
    model.reset_parameters()
    return model


def test_eight_rows_per_table_tell_liked_from_disliked(ratings):
    """Full length reaches 0.826; one cluster for all items and users would give 0.5."""
    labelled = binarize(ratings, positive_from=4, drop=3)
    partition = leave_last_out(labelled).merge_validation()
    train, test = labelled.take(partition.train), labelled.take(partition.test)
    model = clustered(GMF, labelled, 32, 8)
    options = TrainingOptions(epochs=12, batch_size=512)
    schedule = ClusterSchedule(growth_rounds=6)
    Trainer(model, BinaryCrossEntropy(), options, clusters=schedule).fit(train)
    found = evaluate_model(model, test, task="binary", train=train)
    assert found["auc"] > 0.805
    assert found["coldest_items"]["auc"] > 0.6
    assert memory_report(model).times_smaller_table > 100


def test_thirty_two_rows_per_table_predict_ratings(ratings):
    """Full length reaches 0.870; the mean rating alone has an error of 1.27."""
    partition = random_partition(ratings, seed=0).merge_validation()
    train, test = ratings.take(partition.train), ratings.take(partition.test)
    model = clustered(BiasedMF, ratings, 16, 32)
    options = TrainingOptions(
        epochs=12, batch_size=512, optimizer="adam", learning_rate=5e-3, weight_decay=0.0, l2=0.02
    )
    schedule = ClusterSchedule(growth_rounds=6)
    Trainer(model, SquaredError(), options, clusters=schedule).fit(train)
    assert evaluate_model(model, test, task="rating")["mse"] < 0.91
