"""Long work in many jobs: run in processes, the result of each kept in a file.

What is stopped goes on where it was. A result is kept only for the very arguments it was computed
with; where these have changed the job runs again. A job that fails does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from celrec.experiments.run import write_text


@dataclass(frozen=True)
class Job:
    """A call whose result is worth keeping.

    function : returns what JSON can hold
    arguments : with a `repr` that says all
    aside : further arguments, which are no part of the fingerprint: a file for what is too long
        for JSON, a device
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    aside: tuple[Any, ...] = ()

    def fingerprint(self) -> str:
        what = f"{self.function.__name__}{self.arguments!r}"
        return hashlib.sha256(what.encode()).hexdigest()[:16]


class Jobs:
    """Results in a folder, one JSON file for each job.

    out : the folder
    processes : how many jobs run at once, one thread each; one runs in the process that asks
    commit : of the code that computes them, kept with each result
    tell : told a line about every job that ends
    failures : by name of the job, what went wrong; the others go on
    """

    def __init__(
        self,
        out: Path,
        processes: int,
        *,
        commit: str = "",
        tell: Callable[[str], None] = print,
    ) -> None:
        self.out = out
        self.processes = processes
        self.commit = commit
        self.tell = tell
        self.failures: dict[str, str] = {}
        out.mkdir(parents=True, exist_ok=True)

    def run(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """Run those without a result; returns all results by name, failed jobs left out."""
        found = {name: self._kept(name, job) for name, job in jobs.items()}
        missing = {name: jobs[name] for name, result in found.items() if result is None}
        for name, wait in self._started(missing):
            try:
                found[name] = wait()
            except Exception as error:
                self.failures[name] = f"{type(error).__name__}: {error}"
                text = "".join(traceback.format_exception(error))
                (self.out / f"{name}.error").write_text(text, encoding="utf-8")
                self.tell(f"{name} FAILED: {self.failures[name]}")
            else:
                self._keep(name, jobs[name], found[name])
                self.tell(f"{name} done")
        return {name: result for name, result in found.items() if result is not None}

    def _started(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Name and result of each job, as they end; a single process is this one."""
        if self.processes == 1:
            for name, job in jobs.items():
                yield name, partial(job.function, *job.arguments, *job.aside)
            return
        with ProcessPoolExecutor(
            self.processes,
            multiprocessing.get_context("spawn"),
            initializer=begin_worker,
        ) as pool:
            name_of = {
                pool.submit(job.function, *job.arguments, *job.aside): name
                for name, job in jobs.items()
            }
            for done in as_completed(name_of):
                yield name_of[done], done.result

    def _keep(self, name: str, job: Job, result: Any) -> None:
        kept = {"fingerprint": job.fingerprint(), "commit": self.commit, "result": result}
        write_text(self.file(name), json.dumps(kept, indent=1))
        (self.out / f"{name}.error").unlink(missing_ok=True)

    def kept(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """The results that are there, by name; nothing runs."""
        found = {name: self._kept(name, job) for name, job in jobs.items()}
        return {name: result for name, result in found.items() if result is not None}

    def result(self, name: str) -> Any:
        """The result of that name, whatever it was computed with; None if there is none."""
        kept = self._read(name)
        return None if kept is None else kept["result"]

    def commits(self, names: Iterable[str]) -> list[str]:
        """The commits at which the results of jobs were computed."""
        return sorted({kept["commit"] for name in names if (kept := self._read(name))})

    def file(self, name: str) -> Path:
        return self.out / f"{name}.json"

    def _kept(self, name: str, job: Job) -> Any:
        kept = self._read(name)
        if kept is None or kept["fingerprint"] != job.fingerprint():
            return None
        return kept["result"]

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.file(name)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def begin_worker() -> None:
    """What every process of a pool does first: one thread each, and an end with its parent."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the process that asked was killed, nobody waits for the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def current_commit() -> str:
    """The commit of this package's checkout, short, with a plus where its files differ.

    returns : "" where it is not in a checkout

    >>> isinstance(current_commit(), str)
    True
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        package = git("rev-parse", "--show-toplevel") + "/src"
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", package) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
