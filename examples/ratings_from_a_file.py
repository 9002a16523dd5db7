"""From a file of ratings to a trained, evaluated and saved model, without a loop of your own.

The example writes its own CSV file first, as a shop might have it: customer names, article numbers,
stars and dates. Put your file and your column names in its place.

    python examples/ratings_from_a_file.py
"""

from __future__ import annotations

import tempfile
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import torch

from celrec import ClusteredEmbedding, ClusterSchedule, memory_report
from celrec.checkpoint import save_frozen
from celrec.data.partition import by_time
from celrec.data.readers import read_interactions
from celrec.data.synthetic import planted_clusters
from celrec.losses import SquaredError
from celrec.models.biased_mf import BiasedMF
from celrec.training.evaluation import evaluate_model, predict
from celrec.training.trainer import Trainer, TrainingOptions


def write_ratings(path: Path) -> None:
    """A made-up shop: 400 customers of four kinds, 200 articles of four kinds."""
    data = planted_clusters(
        400, 200, 4, 4, num_interactions=12_000, signal=1.5, popularity_skew=0.5, seed=0
    ).interactions
    first_day = date(2024, 1, 1)
    frame = pl.DataFrame(
        {
            "customer": [f"customer-{user:03d}" for user in data.user],
            "article": [7000 + item for item in data.item],
            "stars": (3 + data.label).round().clip(1, 5),
            "day": [first_day + timedelta(days=row // 40) for row in range(len(data))],
        }
    )
    frame.write_csv(path)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shop.csv")
        write_ratings(path)

        ratings = read_interactions(
            path, user="customer", item="article", label="stars", timestamp="day"
        )
        print(ratings.describe())
        parts = by_time(ratings, test_share=0.2, validation_share=0.1)
        print(parts.describe())
        train, validation = ratings.take(parts.train), ratings.take(parts.validation)
        test = ratings.take(parts.test)

        widths = BiasedMF.layer_widths(8)
        model = BiasedMF(
            ClusteredEmbedding(ratings.num_users, widths["user_embedding"], max_clusters=16),
            ClusteredEmbedding(ratings.num_items, widths["item_embedding"], max_clusters=16),
        )
        model.reset_parameters()
        trainer = Trainer(
            model,
            SquaredError(),
            TrainingOptions(epochs=20, batch_size=256, learning_rate=5e-3, patience=6),
            clusters=ClusterSchedule(growth_rounds=10),
            run_dir=Path(folder, "run"),  # run it again with the same folder, and it goes on
        )
        result = trainer.fit(train, validation)
        print(f"\n{result.num_epochs} epochs, the best on validation: {result.best_epoch}")

        figures = evaluate_model(model, test, task="rating", train=train)
        print(f"mean squared error on test data: {figures['mse']:.3f}")
        for name in ("coldest_users", "coldest_items"):
            print(f"  {name}: {figures[name]['mse']:.3f} of {figures[name]['num_events']} events")
        print(memory_report(model))

        customer = ratings.users.encode(["customer-007"])[0]
        candidates = test.take(test.user == customer)
        best = int(predict(model, candidates).argmax())
        article = ratings.items[int(candidates.item[best])]
        print(f"of the articles that customer-007 rates next, {article} should please most")

        frozen = Path(folder, "model.safetensors")
        save_frozen(model, frozen)
        print(f"file to serve from: {frozen.stat().st_size:,} bytes")

        constant = float(((test.label - train.label.mean()) ** 2).mean())
        print(f"less than two thirds of the error of the mean: {figures['mse'] < constant * 2 / 3}")


if __name__ == "__main__":
    main()
