"""The page: headline, table, sections, and what the run was, in one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from celrec.errors import DataError
from celrec.report.read import (
    OURS,
    Method,
    ResultRow,
    Run,
    flat_config,
    group_runs,
    read_runs,
    result_rows,
)
from celrec.report.sections import Chart, Section, find_sections
from celrec.report.style import COLOURS, role_of
from celrec.report.words import (
    codes_note,
    figure_name,
    headline,
    plus_minus,
    readable_bytes,
    rival_sentence,
    table_note,
    times,
    unbroken,
)


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    demo_rows: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about runs.

    run_dirs : run folders of one task and data set; those that differ in seeds only are averaged
    out : the file; its folder is made if missing
    demo_rows : lines of the table that are known already, as `celrec demo --json` writes them
    title : by default, the name of the data
    returns : out
    raises : CheckpointError for a folder that is no run, or is damaged; DataError for runs that
        cannot be compared, or if the page cannot be written; ArgumentError for no folders
    """
    return write_page(render_page(run_dirs, demo_rows=demo_rows, title=title), out)


def write_page(page: str, out: Path) -> Path:
    """Write a page to a file whose folder is made if missing.

    returns : out
    raises : DataError if it cannot be written
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}; choose another place") from error
    return out


def render_page(
    run_dirs: Sequence[Path],
    *,
    demo_rows: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> str:
    """The page as text; see `write_report`."""
    runs = read_runs(run_dirs)
    task = runs[0].task
    methods = group_runs(runs)
    rows = result_rows(methods, demo_rows)
    return _render(
        title=title or str(runs[0].facts.get("data", {}).get("name", "celrec report")),
        headline=headline(rows, methods, task),
        rival=rival_sentence(rows, task),
        codes=codes_note(methods),
        task=task,
        rows=rows,
        sections=find_sections(methods, rows, task),
        facts=_facts(runs),
        shared_settings=_shared_settings(methods),
        own_settings=_own_settings(methods),
    )


# --- what the run was ----------------------------------------------------------------------------


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(what, value) from run.json; values that differ between runs one after the other."""
    facts = [
        ("Data", _distinct(runs, "data", _describe_data)),
        ("Data fingerprint", _distinct(runs, "data", lambda data: data.get("fingerprint", ""))),
        ("Partition", _distinct(runs, "partition", _describe_partition)),
        ("Seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("Command", _distinct(runs, "command", lambda command: " ".join(command))),
        ("Versions", _distinct(runs, "versions", _describe)),
        ("Hardware", _distinct(runs, "hardware", _describe)),
        ("Run folders", ", ".join(run.folder.name for run in runs)),
    ]
    return [(name, value) for name, value in facts if value]


def _distinct(runs: Sequence[Run], key: str, describe: Callable[[Any], str]) -> str:
    return "; ".join(dict.fromkeys(describe(run.facts[key]) for run in runs if run.facts.get(key)))


def _describe_data(data: Mapping[str, Any]) -> str:
    counts = [
        f"{data[f'num_{name}']:,} {name}"
        for name in ("interactions", "users", "items")
        if f"num_{name}" in data
    ]
    return ": ".join([str(data.get("name", "")), ", ".join(counts)])


def _describe_partition(partition: Mapping[str, Any]) -> str:
    parts = [
        f"{partition[name]:,} {name}"
        for name in ("train", "validation", "test")
        if partition.get(name)
    ]
    return ": ".join([str(partition.get("name", "")), ", ".join(parts)])


def _describe(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _shared_settings(methods: Sequence[Method]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, [(key, value)]) of all settings that are the same everywhere."""
    configs = [flat_config(method.runs[0].config) for method in methods]
    sections: dict[str, list[tuple[str, str]]] = {}
    for path, value in configs[0].items():
        if path != ("seed",) and all(config.get(path) == value for config in configs):
            sections.setdefault(".".join(path[:-1]), []).append((path[-1], _setting(value)))
    return list(sections.items())


def _own_settings(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """(label, the settings that are not the same everywhere) of each method."""
    configs = [flat_config(method.runs[0].config) for method in methods]
    differing = [
        path
        for path in dict.fromkeys(path for config in configs for path in config)
        if len({repr(config.get(path)) for config in configs}) > 1
        and path not in (("seed",), ("partition", "seed"))
    ]
    if not differing:
        return []
    keys = [path[-1] for path in differing]
    name = {path: path[-1] if keys.count(path[-1]) == 1 else ".".join(path) for path in differing}
    name[("embedding", "kind")] = "embedding"
    return [
        (
            method.label,
            ", ".join(
                f"{name[path]} {_setting(config[path])}"
                for path in differing
                if config.get(path, False) is not False
                and (path[0] not in ("clusters", "encoding") or method.embedding in OURS)
            ),
        )
        for method, config in zip(methods, configs, strict=True)
    ]


def _setting(value: Any) -> str:
    """False stands for "none" in a run's configuration file."""
    if value is False:
        return "–"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- HTML ----------------------------------------------------------------------------------------


def _render(
    *, sections: Sequence[Section], rows: Sequence[ResultRow], task: str, **values: Any
) -> str:
    return render_template(
        "page.html",
        [chart for section in sections for chart in section.charts],
        **values,
        sections=sections,
        rows=rows,
        note=table_note(rows, task),
        figure=figure_name(task),
        plus_minus=plus_minus,
    )


def render_template(
    template: str, charts: Sequence[Chart], *, styles: Sequence[str] = ("page.css",), **values: Any
) -> str:
    """A self-contained page.

    template : page.html, or one that extends it
    charts : all that it has boxes for, by their names
    styles : files of this folder, in order
    values : what the template shows
    """
    environment = Environment(
        loader=PackageLoader("celrec", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=readable_bytes,
        times=times,
        figure=lambda value: "too few" if value is None else f"{value:.3f}",
        seconds=lambda value: "–" if value is None else f"{value:.1f}",
        role=role_of,
        unbroken=unbroken,
        csp_hash=_csp_hash,
    )
    assert environment.loader is not None
    css = "".join(environment.loader.get_source(environment, name)[0] for name in styles)
    drawn = {chart.name: {"data": chart.data, "layouts": chart.layouts} for chart in charts}
    return environment.get_template(template).render(
        **values,
        css=Markup(css),
        colours=COLOURS,
        charts={"drawn": drawn, "dark": list(COLOURS.values())},
        plotly_js=Markup(get_plotlyjs().replace("\r\n", "\n")),
    )


def _csp_hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")
