"""From configurations to objects: what the data decide, and how every word is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch

from celrec.baselines.registry import all_baselines
from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, CatalogError, CelrecError, ConfigError, DataError
from celrec.experiments.build import (
    MODELS,
    OBJECTIVES,
    PARTITIONS,
    build_model,
    completed,
    divide,
    initialise,
    load_interactions,
    tables_of,
    with_full_tables,
)
from celrec.experiments.config import CLUSTERED, ModelKind, PartitionKind
from celrec.losses import Task
from celrec.models.layers import rows_of
from tests.experiments.making import config, write_planted


def ratings(label: list[float], *, has_times: bool = True) -> Interactions:
    """As many users and items as labels; user and item of row i are i mod 5 and i mod 7."""
    rows = np.arange(len(label))
    return Interactions(
        user=rows % 5,
        item=rows % 7,
        label=label,
        users=Vocabulary.from_values(range(5)),
        items=Vocabulary.from_values(range(7)),
        timestamp=rows if has_times else None,
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (MODELS, ModelKind),
        (PARTITIONS, PartitionKind),
        (OBJECTIVES, Task),
    ],
)
def test_every_word_of_the_configuration_can_be_built(table: dict[str, Any], words: Any) -> None:
    assert set(table) == set(get_args(words))


# --- what the data decide ------------------------------------------------------------------------


def test_rows_adapt_to_few_entities() -> None:
    done = completed(config(Path("x")), ratings([1.0] * 40))
    chosen = replace(config(Path("x")).embedding, user_rows=None, item_rows=None)
    done = completed(replace(config(Path("x")), embedding=chosen), ratings([1.0] * 40))
    assert (done.embedding.user_rows, done.embedding.item_rows) == (5, 7)


def test_given_rows_are_kept_and_refused_where_they_do_not_fit() -> None:
    wanted = config(Path("x"), embedding={"user_rows": 6, "item_rows": 7})
    done = completed(wanted, ratings([1.0] * 40))
    with pytest.raises(ConfigError, match="clustered table of 5 users: max_clusters is 6, more"):
        build_model(done, 5, 7)


def test_rows_that_choose_themselves_stay_so() -> None:
    wanted = config(Path("x"), embedding={"user_rows": "auto", "item_rows": 7})
    done = completed(wanted, ratings([1.0] * 40))
    assert done.embedding.user_rows == "auto"
    model = build_model(done, 5, 7)
    is_auto = {name: table.is_auto for name, table in tables_of(model).items()}
    assert is_auto == {"user_embedding": True, "item_embedding": False}


def test_ratings_from_1_to_5_become_the_gmf_protocol() -> None:
    task = completed(config(Path("x"), task={"kind": "binary"}), ratings([1, 2, 3, 4, 5] * 8)).task
    assert (task.positive_from, task.drop_rating) == (4.0, 3.0)


def test_labels_of_0_and_1_stay_as_they_are() -> None:
    data = ratings([0.0, 1.0, 1.0, 0.0] * 10)
    done = completed(config(Path("x"), task={"kind": "binary"}), data)
    parts = divide(done, data)
    together = np.concatenate([parts.train.label, parts.validation.label, parts.test.label])
    assert together.sum() == 20
    assert len(together) == 40


def test_given_labels_are_kept() -> None:
    given = config(Path("x"), task={"kind": "binary", "positive_from": 2.0})
    task = completed(given, ratings([1, 2, 3, 4, 5] * 8)).task
    assert (task.positive_from, task.drop_rating) == (2.0, None)


def test_labels_of_another_range_must_be_explained() -> None:
    with pytest.raises(ConfigError, match=r"go from 1 to 10, .* say from which value"):
        completed(config(Path("x"), task={"kind": "binary"}), ratings([1, 10] * 8))


def test_one_class_only_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"every label of interactions is 1: .*--negatives"):
        completed(config(Path("x"), task={"kind": "binary"}), ratings([1.0] * 8))


def test_partition_follows_task_and_times() -> None:
    def kind(task: str, has_times: bool) -> str | None:
        data = ratings([1, 2, 4, 5] * 10, has_times=has_times)
        return completed(config(Path("x"), task={"kind": task}), data).partition.kind

    assert kind("binary", True) == "leave-last-out"
    assert kind("binary", False) == "random"
    assert kind("rating", True) == "random"


def test_a_random_partition_takes_the_seed_of_the_run_unless_it_has_its_own() -> None:
    data = ratings([1, 2, 4, 5] * 10)
    assert completed(config(Path("x"), seed=4), data).partition.seed == 4
    own = config(Path("x"), seed=4, partition={"seed": 2})
    assert completed(own, data).partition.seed == 2


def test_completing_twice_changes_nothing(tmp_path: Path) -> None:
    chosen = config(write_planted(tmp_path / "a.parquet"))
    data = load_interactions(chosen)
    once = completed(chosen, data)
    assert completed(once, data) == once
    assert Path(once.data.source).is_absolute()


# --- division ------------------------------------------------------------------------------------


def test_merging_validation_trains_on_all_but_the_same_test_set() -> None:
    data = ratings([1, 2, 4, 5] * 10)
    apart = divide(completed(config(Path("x")), data), data)
    merged = divide(completed(config(Path("x"), partition={"merge_validation": True}), data), data)
    assert merged.validation is None
    assert apart.validation is not None
    assert len(merged.train) == len(apart.train) + len(apart.validation)
    assert merged.test.fingerprint() == apart.test.fingerprint()


def test_negatives_follow_every_part_and_no_known_pair_is_among_them(tmp_path: Path) -> None:
    chosen = config(
        write_planted(tmp_path / "a.parquet", num_interactions=300),
        task={"kind": "binary", "negatives": 2},
    )
    data = load_interactions(chosen)
    assert set(data.label) == {1.0}  # the column of ratings is not read
    parts = divide(completed(chosen, data), data)
    known = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    for part in (parts.train, parts.validation, parts.test):
        assert part is not None
        assert part.label.mean() == pytest.approx(1 / 3)
        pairs = zip(part.user.tolist(), part.item.tolist(), strict=True)
        is_known = np.array([pair in known for pair in pairs])
        assert (is_known == (part.label == 1)).all()


def test_drop_rating_leaves_rows_out_of_a_rating_task() -> None:
    data = ratings([1, 2, 3, 5] * 10)
    parts = divide(completed(config(Path("x"), task={"drop_rating": 3.0}), data), data)
    assert 3.0 not in parts.train.label
    assert len(parts.train) + len(parts.validation or []) + len(parts.test) == 30


# --- sources -------------------------------------------------------------------------------------


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(CatalogError, match=r"called 'ml-100'; did you mean 'ml-100k'\?"):
        load_interactions(config(Path("ml-100")))
    with pytest.raises(DataError, match=r"nowhere.csv"):
        load_interactions(config(Path("nowhere.csv")))


def test_columns_are_read_under_the_users_names(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    pl.DataFrame({"who": [1, 2], "what": ["a", "b"], "stars": [2.0, 3.0]}).write_csv(file)
    columns = {"user": "who", "item": "what", "label": "stars", "time": False, "title": False}
    data = load_interactions(config(file, data=columns))
    assert data.label.tolist() == [2.0, 3.0]
    assert data.timestamp is None


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", get_args(ModelKind))
@pytest.mark.parametrize("embedding", ["full", *CLUSTERED, *all_baselines()])
def test_every_model_runs_on_every_kind_of_table(model: str, embedding: str) -> None:
    data = ratings([1, 2, 4, 5] * 10)
    is_baseline = embedding in all_baselines()  # some cannot be as small as five rows
    rows = dict.fromkeys(("user_rows", "item_rows"), 40 if is_baseline else False)
    chosen = config(
        Path("x"),
        model={"kind": model, "hidden": [8]},
        embedding={"kind": embedding, **rows},
    )
    done = completed(chosen, data)
    if model == "nmf" and not has_plain_rows(embedding):
        with pytest.raises(ArgumentError, match=r"has no rows \(`weight`\)"):
            build_model(done, data.num_users, data.num_items)
        return
    built = build_model(done, data.num_users, data.num_items)
    initialise(built, done, data)
    user, item = torch.tensor(data.user), torch.tensor(data.item)
    assert built(user, item).shape == (len(data),)
    assert {table.num_embeddings for table in tables_of(built).values()} == {5, 7}
    full = with_full_tables(built)
    assert {type(table) for table in tables_of(full).values()} == {torch.nn.Embedding}
    torch.testing.assert_close(full(user, item), built.eval()(user, item))


def has_plain_rows(embedding: str) -> bool:
    kind = all_baselines().get(embedding)
    return kind is None or hasattr(kind.within(50, 8, 800), "weight")


def test_the_start_depends_on_the_seed_and_scale_alone() -> None:
    data = ratings([1, 2, 4, 5] * 10)

    def start(seed: int, scale: float) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(10**9))
        done = completed(config(Path("x"), seed=seed, embedding={"init_scale": scale}), data)
        model = build_model(done, 5, 7)
        initialise(model, done, data)
        return rows_of(tables_of(model)["user_embedding"]).detach()

    assert torch.equal(start(1, 1.0), start(1, 1.0))
    assert torch.equal(start(1, 0.5), 0.5 * start(1, 1.0))
    assert not torch.equal(start(1, 1.0), start(2, 1.0))


def test_hashing_differs_between_seeds() -> None:
    def rows(seed: int) -> list[int]:
        chosen = config(
            Path("x"), seed=seed, embedding={"kind": "hashed", "user_rows": 8, "item_rows": 8}
        )
        table = build_model(chosen, 100, 100).user_embedding
        return table.row_ids(torch.arange(100)).tolist()

    assert rows(0) != rows(1)


def test_nmf_refuses_negative_labels() -> None:
    data = ratings([-1, 2, 4, 5] * 10)
    done = completed(config(Path("x"), model={"kind": "nmf"}), data)
    with pytest.raises(CelrecError, match="the smallest label is -1, but NMF"):
        initialise(build_model(done, 5, 7), done, data)
