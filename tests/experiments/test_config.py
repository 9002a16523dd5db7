"""RunConfig: TOML and back, defaults, and what is refused."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.errors import ConfigError
from celrec.experiments.config import RunConfig, merged


def minimal(**overrides: Any) -> dict[str, Any]:
    return merged({"data": {"source": "ml-100k"}}, overrides)


@given(
    seed=st.integers(0, 2**40),
    width=st.integers(1, 512),
    rows=st.none() | st.integers(2, 10_000) | st.just("auto"),
    share=st.floats(0.01, 0.9),
    positive_from=st.none() | st.floats(-5, 5),
    separator=st.none() | st.sampled_from([";", "::", '"', "\\", "é"]),
)
def test_toml_gives_back_the_same_configuration(
    seed: int,
    width: int,
    rows: int | str | None,
    share: float,
    positive_from: float | None,
    separator: str | None,
) -> None:
    chosen = RunConfig.from_values(
        {
            "seed": seed,
            "data": {"source": "a b.csv", "separator": False if separator is None else separator},
            "task": {
                "kind": "binary",
                "positive_from": False if positive_from is None else positive_from,
            },
            "partition": {"test_share": share},
            "model": {"width": width},
            "embedding": {"user_rows": False if rows is None else rows},
        }
    )
    again = RunConfig.from_values(tomllib.loads(chosen.to_toml()))
    assert again == chosen
    assert again.data.separator == separator
    assert again.embedding.user_rows == rows


def test_the_written_configuration_is_complete() -> None:
    written = tomllib.loads(RunConfig.from_values(minimal()).to_toml())

    def check(config: Any, values: dict[str, Any]) -> None:
        assert sorted(values) == sorted(f.name for f in dataclasses.fields(config))
        for field in dataclasses.fields(config):
            part = getattr(config, field.name)
            if dataclasses.is_dataclass(part):
                check(part, values[field.name])

    check(RunConfig.from_values(minimal()), written)


def test_defaults_follow_the_task() -> None:
    rating = RunConfig.from_values(minimal())
    binary = RunConfig.from_values(minimal(task={"kind": "binary"}))
    assert (rating.model.kind, rating.model.width) == ("biased-mf", 16)
    assert (binary.model.kind, binary.model.width) == ("gmf", 32)


@pytest.mark.parametrize("task", ["rating", "binary"])
@given(epochs=st.integers(1, 100))
def test_clusters_finish_growing_in_any_number_of_epochs(task: str, epochs: int) -> None:
    config = RunConfig.from_values(minimal(task={"kind": task}, training={"epochs": epochs}))
    schedule = config.clusters.schedule
    rounds = sum(schedule.is_due(epoch, epochs) for epoch in range(epochs))
    assert 1 <= schedule.growth_rounds <= rounds


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"modle": {}}, r"the configuration has no key 'modle'; did you mean 'model'\?"),
        ({"training": {"epoch": 3}}, r"\[training\] has no key 'epoch'; did you mean 'epochs'\?"),
        ({"training": {"epochs": 0}}, r"\[training\]: epochs is 0; wanted an integer of at least"),
        ({"training": {"epochs": "ten"}}, "training.epochs is 'ten'; wanted an integer"),
        ({"training": {"epochs": True}}, "training.epochs is True; wanted an integer"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast'; wanted a num"),
        ({"training": 3}, r"training is 3; wanted a section \[training\]"),
        ({"model": {"kind": "gfm"}}, r"model.kind is 'gfm'; did you mean 'gmf'\?"),
        ({"model": {"width": 0}}, r"\[model\]: width is 0; wanted an integer of at least 1"),
        ({"model": {"hidden": 64}}, "model.hidden is 64; wanted a list"),
        ({"embedding": {"kind": "full", "user_rows": 9}}, "a full table has one row for every ent"),
        ({"embedding": {"user_rows": "all"}}, "user_rows is 'all'; wanted an integer or 'auto'"),
        ({"embedding": {"user_rows": True}}, "user_rows is True; wanted an integer or 'auto'"),
        ({"embedding": {"kind": "hashed", "item_rows": "auto"}}, "a hashed table cannot choose"),
        (
            {"embedding": {"kind": "hash"}},
            r"\[embedding\]: kind is 'hash'; did you mean 'hashed'\?",
        ),
        ({"task": {"kind": "ranking"}}, r"task.kind is 'ranking'; did you mean 'rating'\?"),
        ({"task": {"positive_from": 4.0}}, "choose the task binary"),
        ({"clusters": {"split": {"eta": 2}}}, r"\[clusters.split\]: eta is 2; wanted"),
        (
            {"embedding": {"kind": "hashed"}, "encoding": {"personal": True}},
            "for clustered tables, but the embedding is hashed; leave them out",
        ),
        ({"encoding": {"blend": 65}}, r"\[encoding\]: blend is 65; wanted an integer from 1 to 64"),
        ({"seed": -1}, "the configuration: seed is -1"),
        ({"data": {"source": 3}}, "data.source is 3; wanted a text"),
    ],
)
def test_a_mistake_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_values(minimal(**overrides))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[data\] lacks the key 'source'"):
        RunConfig.from_values({"data": {}})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    with pytest.raises(ConfigError, match=r"run.toml cannot be read as TOML: .*No such file"):
        RunConfig.read(file)
    file.write_text("seed = = 1")
    with pytest.raises(ConfigError, match=r"run.toml cannot be read as TOML: Invalid value"):
        RunConfig.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"run.toml cannot be read as TOML"):
        RunConfig.read(file)
