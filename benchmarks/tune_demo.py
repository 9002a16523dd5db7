"""Choose the settings of `celrec demo` on validation data, and write them into the package.

    python -m benchmarks.tune_demo [--trials 32] [--finalists 6] [--processes 2] [--only NAME...]

By the GMF protocol every user's third-last event validates; the last two, which the demo tests on,
are never looked at. Every line of the demo's table gets the same care: as many trials, drawn from
the same ranges by the same generator, one seed each; the finalists run with two seeds more; the
best mean AUC after the last epoch is taken. The number of epochs is drawn like any other setting.
Clustered tables have four settings more than the others, and no trial more. They are judged with
hard codes; blended codes and personal vectors take over what was chosen for these.

About 400 runs of 1 to 15 seconds. A line per run goes to standard output.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tomli_w

from celrec.experiments import demo
from celrec.experiments.build import (
    Parts,
    build_model,
    completed,
    divide,
    initialise,
    load_interactions,
)
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import make_trainer

SETTINGS = Path(demo.__file__).with_name("demo_settings.toml")
SEEDS = (0, 1, 2)

Draw = Callable[[np.random.Generator], Any]


def one_of(*values: Any) -> Draw:
    return lambda rng: values[rng.integers(len(values))]


def log_uniform(low: float, high: float) -> Draw:
    """Rounded to two digits, so that the file reads well."""
    return lambda rng: float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.1e}")


SPACE: dict[tuple[str, ...], Draw] = {
    ("training", "epochs"): one_of(15, 20, 30, 45, 60),
    ("training", "batch_size"): one_of(1024, 2048, 4096),
    ("training", "learning_rate"): log_uniform(1e-3, 1e-2),
    ("training", "weight_decay"): one_of(0.0, 0.01, 0.1),
    ("training", "l2"): one_of(0.0, 0.001, 0.003, 0.01, 0.03),
    ("embedding", "init_scale"): one_of(0.1, 0.3, 1.0),
}
SPACE_OF_CLUSTERS: dict[tuple[str, ...], Draw] = {
    ("clusters", "split", "eta"): one_of(0.05, 0.1, 0.2),
    ("clusters", "split", "damping"): one_of(2.0, 5.0, 10.0),
    ("clusters", "reassign", "prior_weight"): one_of(0.5, 1.0, 1.5),
}
GROWTH_SHARES = (0.3, 0.5, 0.7)
"""Growth rounds per epoch."""


def main() -> None:
    options = _options()
    variants = [
        variant
        for variant in demo.demo_variants(_interactions())
        if variant.settings_name == variant.name  # others take over what was chosen
        and (not options.only or variant.name in options.only)
    ]
    settings = demo.shipped_settings()
    with ProcessPoolExecutor(
        options.processes, multiprocessing.get_context("spawn"), initializer=demo.start_worker
    ) as pool:
        for variant in variants:
            settings[variant.name] = choose(variant, options, pool)
            SETTINGS.write_text(_heading(options) + tomli_w.dumps(settings), encoding="utf-8")


def choose(
    variant: demo.Variant, options: argparse.Namespace, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """The best settings of one variant."""
    trials = [draw_settings(variant, trial) for trial in range(options.trials)]
    first = _scores(pool, variant, [(settings, SEEDS[0]) for settings in trials])
    ranked = sorted(range(options.trials), key=lambda trial: -first[trial])
    finalists = ranked[: options.finalists]
    pairs = [(trials[trial], seed) for trial in finalists for seed in SEEDS[1:]]
    later = iter(_scores(pool, variant, pairs))
    means = {trial: mean([first[trial], *(next(later) for _ in SEEDS[1:])]) for trial in finalists}
    best = max(means, key=lambda trial: means[trial])
    print(f"{variant.name}: trial {best}, validation AUC {means[best]:.4f}", flush=True)
    return trials[best]


def draw_settings(variant: demo.Variant, trial: int) -> dict[str, Any]:
    """The settings of a trial: the same for all variants, but for what clusters add."""
    rng = np.random.default_rng(trial)
    settings: dict[str, Any] = {}
    for path, draw in SPACE.items():
        settings = merged(settings, _at(path, draw(rng)))
    if variant.embedding == "clustered":
        for path, draw in SPACE_OF_CLUSTERS.items():
            settings = merged(settings, _at(path, draw(rng)))
        growth = max(1, round(settings["training"]["epochs"] * one_of(*GROWTH_SHARES)(rng)))
        schedule = {"every": 1, "growth_rounds": growth}  # rounds on so few data cost little
        settings = merged(settings, _at(("clusters", "schedule"), schedule))
    return settings


def validation_auc(variant: demo.Variant, settings: dict[str, Any], seed: int) -> float:
    """Train on the training data alone; the AUC on validation data after the last epoch."""
    values = merged(variant.values(settings), {"data": demo.DATA, "seed": seed})
    interactions = _interactions()
    config = completed(RunConfig.from_values(values), interactions)
    parts = _parts()
    model = build_model(config, interactions.num_users, interactions.num_items)
    initialise(model, config, parts.train)
    began = time.perf_counter()
    history = make_trainer(config, model).fit(parts.train, parts.validation).history
    auc = float(history[-1]["validation"]["auc"])
    line = {"variant": variant.name, "seed": seed, "auc": round(auc, 4)}
    line |= {"seconds": round(time.perf_counter() - began, 1), "settings": settings}
    print(json.dumps(line), flush=True)
    return auc


def _scores(
    pool: ProcessPoolExecutor,
    variant: demo.Variant,
    pairs: Iterable[tuple[dict[str, Any], int]],
) -> list[float]:
    jobs = [pool.submit(validation_auc, variant, settings, seed) for settings, seed in pairs]
    return [job.result() for job in jobs]


def _at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


@functools.cache
def _interactions() -> Any:
    values = merged(demo.PROTOCOL, {"data": demo.DATA})
    return load_interactions(RunConfig.from_values(values))


@functools.cache
def _parts() -> Parts:
    """Seeds change nothing here: each user's last events are set apart."""
    config = RunConfig.from_values(merged(demo.PROTOCOL, {"data": demo.DATA}))
    return divide(completed(config, _interactions()), _interactions())


def _heading(options: argparse.Namespace) -> str:
    return (
        "# The settings of `celrec demo`, by the line of its table. Written by\n"
        f"#     python -m benchmarks.tune_demo --trials {options.trials} "
        f"--finalists {options.finalists}\n"
        "# which chose them on validation data (each user's third-last event), with the same\n"
        f"# number of trials for every line: {options.trials} drawn at random, the best "
        f"{options.finalists} of them with seeds 0, 1, 2.\n\n"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--finalists", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of variants; the others stay as they are")
    return parser.parse_args()


if __name__ == "__main__":
    main()
