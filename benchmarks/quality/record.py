"""The record of a suite: all that its page is written from, small enough to keep in the repository.

Predictions are not in it; of each pair of methods, what they say is. So a suite that takes longer
than one sitting can be run in parts, each with some of the methods and with ours, which all others
are compared with:

    celrec bench SUITE.toml --only clustered --only pq ...       # today, then write
    celrec bench SUITE.toml --only clustered --only robe ...     # another day, elsewhere; write

A later part takes the place of an earlier one where both ran a method. A method's comparisons stay
those with ours of its own part; how far ours moved from part to part is kept, and told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from celrec.errors import CheckpointError
from celrec.experiments.run import write_text, write_whole
from celrec.experiments.suite import SUITE_FILE, TRIALS_FILE, SuiteConfig
from celrec.experiments.suite_results import (
    OURS,
    TIE,
    Comparison,
    Slice,
    cold_comparisons,
    comparisons,
    ranking_comparisons,
    read_trials,
    standings,
)

COMPARISONS_FILE = "comparisons.json"


@dataclass(frozen=True)
class Record:
    """What a suite's runs said.

    trials : trials.parquet
    compared, cold, ranked : from `comparisons`, `cold_comparisons` and `ranking_comparisons`
    drift : the most by which a mean of ours differs between parts, AUC or share of the squared
        error; 0 where all methods were run together
    """

    suite: SuiteConfig
    trials: pl.DataFrame
    compared: list[Comparison]
    cold: list[tuple[Slice, int, Comparison]]
    ranked: list[Comparison]
    drift: float = 0.0

    @classmethod
    def of_runs(cls, folder: Path) -> Record:
        """Of the folder that `celrec bench` filled, with the data where it found them."""
        suite = SuiteConfig.read(folder / SUITE_FILE)
        return cls(
            suite,
            read_trials(folder),
            comparisons(suite, folder),
            cold_comparisons(suite, folder),
            ranking_comparisons(suite, folder),
        )

    @classmethod
    def read(cls, folder: Path) -> Record:
        """What `write` left."""
        kept = json.loads((folder / COMPARISONS_FILE).read_text(encoding="utf-8"))
        return cls(
            SuiteConfig.read(folder / SUITE_FILE),
            read_trials(folder),
            [Comparison(**one) for one in kept["compared"]],
            [
                (Slice(**one["slice"]), one["num_events"], Comparison(**one["comparison"]))
                for one in kept["cold"]
            ],
            [Comparison(**one) for one in kept["ranked"]],
            kept["drift"],
        )

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {
            "drift": self.drift,
            "compared": [asdict(one) for one in self.compared],
            "cold": [
                {"slice": asdict(some), "num_events": num_events, "comparison": asdict(one)}
                for some, num_events, one in self.cold
            ],
            "ranked": [asdict(one) for one in self.ranked],
        }
        write_text(folder / SUITE_FILE, replace(self.suite, common=_common(self.suite)).to_toml())
        write_text(folder / COMPARISONS_FILE, json.dumps(kept, indent=1) + "\n")
        source = self.suite.common["data"]["source"]  # in each line's configuration, too
        trials = self.trials.with_columns(
            pl.col("config").str.replace_all(source, Path(source).name, literal=True)
        )
        write_whole(
            folder / TRIALS_FILE,
            lambda file: trials.write_parquet(file, compression="zstd", compression_level=19),
        )

    @property
    def methods(self) -> set[str]:
        """Those that were scored, or failed to be; not those that were tuned alone."""
        return set(self.trials.filter(kind="final")["method"])

    def with_part(self, part: Record) -> Record:
        """Both together; where both have a method, as the part has it.

        raises : CheckpointError if they are not of one suite, or ours is not the same in both
        """
        for name in ("budgets", "tuning_budget", "trials", "seeds", "common", "search"):
            here, there = (
                _common(suite) if name == "common" else getattr(suite, name)
                for suite in (self.suite, part.suite)
            )
            if here != there:
                raise CheckpointError(
                    f"{part.suite.name}: {name} is {there} in the new runs and {here} in the "
                    "record; remove the record and run all methods with the new suite"
                )
        data = {one.trials["data_fingerprint"].drop_nulls()[0] for one in (self, part)}
        if len(data) > 1:
            raise CheckpointError(
                f"{part.suite.name}: the new runs are of other data than the record; remove it "
                "and run all methods"
            )
        kept = self.methods - part.methods
        if not kept:
            return part
        drift = self._drift_to(part)
        if drift > TIE[part.suite.task]:
            raise CheckpointError(
                f"{part.suite.name}: ours differs by {drift:.4f} between the record and the new "
                "runs, more than a tie; remove the record and run all methods"
            )

        def of_kept(found: list[Comparison]) -> list[Comparison]:
            return [one for one in found if one.method in kept]

        trials = [
            one.trials.filter(pl.col("method").is_in(list(methods)))
            for one, methods in ((self, kept), (part, part.methods))
        ]
        return replace(
            part,
            trials=pl.concat(trials, how="diagonal_relaxed"),
            compared=part.compared + of_kept(self.compared),
            cold=part.cold or self.cold,
            ranked=part.ranked + of_kept(self.ranked),
            drift=max(drift, self.drift),
        )

    def _drift_to(self, part: Record) -> float:
        metric = part.suite.metric
        means = []
        for one in (self, part):
            ours = standings(one.trials, metric).filter(pl.col("method") == OURS)
            means.append(dict(ours.select("budget", "mean").iter_rows()))
        here, there = means
        if not there or not here.keys() <= there.keys():
            raise CheckpointError(
                f"{part.suite.name}: the new runs lack {OURS}, with which all others are "
                f"compared; run it beside them (--only {OURS})"
            )
        scale = here if metric == "mse" else dict.fromkeys(here, 1.0)
        return max(abs(there[budget] - here[budget]) / scale[budget] for budget in here)


def _common(suite: SuiteConfig) -> Mapping[str, Any]:
    """The values for all methods, with the name of the data's file, wherever that lies."""
    data = suite.common["data"]
    return {**suite.common, "data": {**data, "source": Path(data["source"]).name}}
