"""What is it in blends and personal vectors that helps? Writes docs/design/personal-vectors.md.

    python -m benchmarks.design.what_codes_gain [--out FOLDER] [--processes N]

Leaves out one thing at a time and reads the *validation* figure, on MovieLens-100k: squared error
of ratings (32 + 32 rows, partitions 0, 1 and 2), and AUC of likes by the GMF protocol (32 rows per
table, three seeds) on four validation events of each user instead of one.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

from benchmarks.codes.protocols import PROTOCOLS, Setting
from benchmarks.codes.training import Session, blend, personalize, trained_clusters
from benchmarks.jobs import ROOT, Job, Jobs
from celrec.core.personal import PersonalFit
from celrec.experiments.config import merged

PAGE = ROOT / "docs" / "design" / "personal-vectors.md"
SEEDS = (0, 1, 2)
PULLS = (0.03, 0.1, 0.3, 1.0)
"""Looseness of a pull that stays as it is; the best is shown."""

VARIANTS = {
    "hard codes": "",
    "blends, m = 4": "",
    "blends, rows then trained through them": "3 epochs, the codes stay",
    "blends, codes made anew after that": "",
    "personal vectors": "as they are by default",
    "four bits a number": "in place of eight",
    "no company": "one mean for all vectors of a table",
    "no noise": "look-ups are means, not draws",
    "no company, no noise": "",
    "one constant pull to the centre": "as in the paper; the best of four strengths",
}

TEXT = """\
# Blends and personal vectors: what is it that helps?

*Written by `python -m benchmarks.design.what_codes_gain`, commit {commit}. MovieLens-100k,
validation data, mean and standard deviation of three seeds (of ratings: partitions). The four
strengths of the constant pull are compared on the same data that they are shown on.*

**Question.** A personal vector is learned from one entity's samples. What keeps it from chasing
their noise? And are rows better trained through the blends they are mixed in?

| variant | AUC of likes | squared error of ratings | |
|---|---|---|---|
{lines}

**Choice.** A prior fitted to all vectors, noise, company; see [how it works](../how-it-works.md).
A constant pull, as in the paper, is a prior whose width somebody must choose, the same in every
direction; a fitted one chooses for each direction. The company that an entity keeps moves its mean,
at no cost in bytes. Numbers of four bits halve what a vector takes; a byte budget takes eight where
they fit.

**Not taken.** Training rows through the blends: see the two lines. Covariances of single entities,
in place of one basis for a table, took three times as long for the same figures. Weights of company
from what the data alone say of each vector, in place of posterior means, diverged: the scale of one
table's vectors moves with that of the other's.
"""


def measure(setting: Setting, seed: int) -> dict[str, float]:
    """The validation figure of every variant."""
    session = trained_clusters(setting, (32, 32), seed, is_final=False)
    hard = session.state()
    found = {"hard codes": session.figure()}
    blend(session, 4, 4.0)
    found["blends, m = 4"] = session.figure()
    train_rows(session, num_epochs=3)
    found["blends, rows then trained through them"] = session.figure()
    blend(session, 4, 4.0)
    found["blends, codes made anew after that"] = session.figure()

    def with_vectors(*changes: Any, **rule: Any) -> float:
        session.model.load_state_dict(hard)
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change)
            personalize(session, 4.0, rule, None)
        return session.figure()

    found["personal vectors"] = with_vectors()
    found["four bits a number"] = with_vectors(bits=4)
    found["no company"] = with_vectors(no_company())
    found["no noise"] = with_vectors(passes_with(is_noisy=False))
    found["no company, no noise"] = with_vectors(no_company(), passes_with(is_noisy=False))
    for looseness in PULLS:
        constant = passes_with(is_noisy=False, refit_prior=False)
        found[f"pull {looseness:g}"] = with_vectors(constant, looseness=looseness)
    return found


def no_company() -> Any:
    return patch.object(PersonalFit, "_company_of", lambda self, name: [])


def passes_with(**changes: Any) -> Any:
    make_pass = PersonalFit._pass

    def changed(self: PersonalFit, *arguments: Any, **options: Any) -> None:
        make_pass(self, *arguments, **{**options, **changes})

    return patch.object(PersonalFit, "_pass", changed)


def train_rows(session: Session, num_epochs: int) -> None:
    """Train rows through the codes as they are, at a fifth of the learning rate."""
    trainer = session.trainer
    optimizer, objective = trainer.optimizer, trainer.objective
    for group in optimizer.param_groups:
        group["lr"] = 0.2 * trainer.options.learning_rate
    for _ in range(num_epochs):
        for user, item, label in session.passes(trainer.options.batch_size):
            optimizer.zero_grad()
            objective.training_loss(session.model(user, item), label).backward()
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/what-codes-gain"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    likes = PROTOCOLS["ml-100k-likes"].setting
    likes = replace(likes, values=merged(likes.values, {"partition": {"num_validation": 4}}))
    settings = {"likes": likes, "ratings": PROTOCOLS["ml-100k-ratings"].setting}
    work = {
        f"{task}-{seed}": Job(measure, (setting, seed))
        for task, setting in settings.items()
        for seed in SEEDS
    }
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    jobs.check()
    lines = []
    for variant, remark in VARIANTS.items():
        cells = []
        for task, best in (("likes", max), ("ratings", min)):
            found = [results[f"{task}-{seed}"] for seed in SEEDS]
            if variant in found[0]:
                figures = [one[variant] for one in found]
            else:
                pulls = [[one[f"pull {pull:g}"] for one in found] for pull in PULLS]
                figures = best(pulls, key=mean)
            cells.append(f"{mean(figures):.4f} ± {stdev(figures):.4f}")
        lines.append(f"| {variant} | {' | '.join(cells)} | {remark} |")
    commits = ", ".join(jobs.commits(work))
    PAGE.write_text(TEXT.format(commit=commits, lines="\n".join(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
