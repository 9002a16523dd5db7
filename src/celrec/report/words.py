"""The sentences of the page. Each says what the figures say, whichever way they fall."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from celrec.report.read import FIGURE, OURS, Method, ResultRow, Run, mean_and_std

_NEARLY = 0.01
"""A difference that a reader may call small; of MSE, relative."""

_SIMILAR_BYTES = 1.5

_ENTITIES = ("user", "item")

_NAMES = {
    "clustered": "Clustered embeddings",
    "blended": "Blended embeddings",
    "personal": "Personal vectors",
    "hashed": "Hashed embeddings",
}


def figure_name(task: str) -> str:
    """The test figure of a task, for a heading."""
    return FIGURE[task].upper()


def readable_bytes(count: float) -> str:
    """A number of bytes, decimal units.

    >>> readable_bytes(672), readable_bytes(4673), readable_bytes(336_000), readable_bytes(2e6)
    ('672 B', '4.7 kB', '336 kB', '2.0 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.{1 if count < 99.95 else 0}f} {unit}"
    return f"{count / 1000:,.1f} GB"


def times(ratio: float) -> str:
    """A ratio, as exact as a reader needs it.

    >>> times(33.87), times(2.04), times(164)
    ('34', '2.0', '164')
    """
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def plus_minus(mean: float, std: float | None) -> str:
    """A figure with its spread.

    >>> plus_minus(0.8251, 0.0021), plus_minus(0.8251, None)
    ('0.825 ± 0.002', '0.825')
    """
    return f"{mean:.3f}" + (f" ± {std:.3f}" if std is not None else "")


def percent(share: float) -> str:
    """A share, as exact as a reader needs it.

    >>> percent(0.187), percent(0.004), percent(0)
    ('19 %', 'under 1 %', '0 %')
    """
    return f"{share:.0%}".replace("%", " %") if share >= 0.01 or share == 0 else "under 1 %"


def unbroken(text: str) -> str:
    """The same text with spaces inside figures that no line breaks at."""
    return re.sub(r"(?<=\d) (?=[±kMGB%])|(?<=±) ", "\N{NO-BREAK SPACE}", text)


def cut(text: str, length: int) -> str:
    """A text on one line, of at most so many characters.

    >>> cut("Raiders of the Lost Ark", 12)
    'Raiders of…'
    """
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip(" ,.:(") + "…"


def headline(rows: Sequence[ResultRow], methods: Sequence[Method], task: str) -> str:
    """The sentence at the top: the figure that matters.

    rows : may be empty: then it says how far the runs are
    """
    if not rows:
        return _progress(methods)
    row = leading_row(rows, task)
    reached = f"{figure_name(task)} {plus_minus(row.mean, row.std)}"
    reached += f" in {readable_bytes(row.total_bytes)}"
    if row.embedding == "full":
        return f"Full tables reach {reached}."
    subject = _subject(row)
    full = full_row(rows, task)
    if full is None:
        return f"{subject} reach {reached}, {_size(row)} than full tables would be."
    return f"{subject} reach {reached}: {_size(row)} than full tables, {_against(row, full, task)}."


def rival_sentence(rows: Sequence[ResultRow], task: str) -> str:
    """What others do with as many bytes, and our smallest table if it is another; "" without any.

    After the headline.
    """
    row = leading_row(rows, task) if rows else None
    if row is None:
        return ""
    sentences = [_rival(rows, row, task)]
    small = min((r for r in rows if r.embedding in OURS), key=lambda r: r.total_bytes, default=row)
    if small.total_bytes < row.total_bytes:
        sentences.append(
            f"At the other end, {_uncapitalized(_subject(small))} reach "
            f"{plus_minus(small.mean, small.std)} in {readable_bytes(small.total_bytes)}, "
            f"{_size(small)} than full tables."
        )
        sentences.append(_rival(rows, small, task))
    return " ".join(filter(None, sentences))


def codes_note(methods: Sequence[Method]) -> str:
    """What the entities of clustered tables store, by the name in the table; "" without any."""
    notes = []
    for kind in OURS:
        runs = [run for method in methods if method.embedding == kind for run in method.finished]
        blends = {code[0] for run in runs for entity in _ENTITIES if (code := run.code(entity))}
        if not blends:
            continue
        if kind == "clustered":
            notes.append("Clustered: every user and item has the row of its cluster")
        elif kind == "blended":
            notes.append(
                "Blended: the vector of a user or item is a weighted mix of the rows of "
                f"{_alternatives(blends)} clusters"
            )
        else:
            owners = " and ".join(_owners(runs, entity) for entity in _ENTITIES)
            note = f"Personal: {owners} have a vector of their own beside the shared rows"
            if max(blends) > 1:
                note += f"; codes mix {_alternatives(blends)} clusters"
            notes.append(note)
    return ". ".join(notes) + "." if notes else ""


def bytes_title(rows: Sequence[ResultRow], task: str) -> str:
    """What the chart of accuracy against bytes shows; neutral unless the figures are clear."""
    name = figure_name(task)
    row, full = leading_row(rows, task), full_row(rows, task)
    if full is None or row is full or row.times_smaller < 2:
        return f"{name} against bytes"
    gain = _gain(row, full, task)
    small = _NEARLY * (full.mean if task == "rating" else 1.0)
    if gain > _spread(row, full):
        return f"Fewer bytes and a better {name}"
    if gain >= -small:
        return f"Fewer bytes, nearly the same {name}"
    return f"{name} against bytes"


def leading_row(rows: Sequence[ResultRow], task: str) -> ResultRow:
    """The smallest of our lines that is level with the best; without one, the best of all."""
    clustered = [row for row in rows if row.embedding in OURS]
    if not clustered:
        return _best(rows, task)
    best = _best(clustered, task)
    level = [row for row in clustered if _gain(best, row, task) <= _spread(best, row)]
    return min(level, key=lambda row: row.total_bytes)


def full_row(rows: Sequence[ResultRow], task: str) -> ResultRow | None:
    """The best line with full tables."""
    chosen = [row for row in rows if row.embedding == "full"]
    return _best(chosen, task) if chosen else None


def rival_row(rows: Sequence[ResultRow], row: ResultRow, task: str) -> ResultRow | None:
    """The best line of another method with about as many bytes as `row`; full tables apart."""
    chosen = [
        other
        for other in rows
        if other.embedding not in (*OURS, row.embedding, "full")
        and 1 / _SIMILAR_BYTES <= other.total_bytes / row.total_bytes <= _SIMILAR_BYTES
    ]
    return _best(chosen, task) if chosen else None


def table_note(rows: Sequence[ResultRow], task: str) -> str:
    """What the columns of the table are."""
    better = "higher" if task == "binary" else "lower"
    notes = [f"{figure_name(task)} on the test set, {better} is better"]
    counts = {row.num_seeds for row in rows}
    if any(row.std is not None for row in rows):
        over = f"{counts.pop()} seeds" if len(counts) == 1 and None not in counts else "seeds"
        notes[0] += f"; ± is the standard deviation over {over}"
    notes.append(
        "Coldest: the tenth of test events whose user (or item) has the fewest interactions in "
        "training"
    )
    notes.append(
        "Total bytes are all that serving needs: the rows of the tables, and what each user and "
        "item keeps, a code and perhaps a vector of its own. Times smaller: total bytes against "
        "full tables"
    )
    return ". ".join(notes) + "."


def _subject(row: ResultRow) -> str:
    """What a line is about; not of full tables."""
    subject = _NAMES[row.embedding]
    if row.rows == "auto":
        return f"{subject} with as many rows as the data pay for"
    if row.rows:
        subject += f" with {row.rows} rows" + ("" if " + " in row.rows else " per table")
    return subject


def _uncapitalized(text: str) -> str:
    return text[0].lower() + text[1:]


def _rival(rows: Sequence[ResultRow], row: ResultRow, task: str) -> str:
    rival = rival_row(rows, row, task)
    if rival is None:
        return ""
    return (
        f"{rival.embedding.capitalize()} tables of about as many bytes reach "
        f"{plus_minus(rival.mean, rival.std)}."
    )


def _alternatives(counts: Iterable[int]) -> str:
    """
    >>> _alternatives({4}), _alternatives({4, 1, 2})
    ('4', '1, 2 or 4')
    """
    *others, last = map(str, sorted(counts))
    return f"{', '.join(others)} or {last}" if others else last


def _owners(runs: Sequence[Run], entity: str) -> str:
    """How many of the users or items have a vector of their own."""
    counts = sorted(code[1] for run in runs if (code := run.code(entity)))
    total = runs[0].facts.get("data", {}).get(f"num_{entity}s")
    if counts[0] == counts[-1] == total:
        return f"all {total:,} {entity}s"
    number = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
    return number + (f" of {total:,}" if total else "") + f" {entity}s"


def _best(rows: Sequence[ResultRow], task: str) -> ResultRow:
    sign = 1 if task == "binary" else -1
    return max(rows, key=lambda row: (sign * row.mean, -row.total_bytes))


def _gain(row: ResultRow, other: ResultRow, task: str) -> float:
    """How much better a line is, as a reader subtracts the rounded figures."""
    gain = round(round(row.mean, 3) - round(other.mean, 3), 3)
    return gain if task == "binary" else -gain


def _size(row: ResultRow) -> str:
    if row.times_smaller >= 1:
        return f"{times(row.times_smaller)} times smaller"
    return f"{times(1 / row.times_smaller)} times larger"


def _against(row: ResultRow, full: ResultRow, task: str) -> str:
    """How its figure stands to that of full tables, after its size was said."""
    gain = _gain(row, full, task)
    theirs = f"their {plus_minus(full.mean, full.std)}"
    if abs(gain) <= _spread(row, full):
        return f"and level with {theirs}"
    is_mixed = (gain > 0) != (row.times_smaller >= 1)
    than = f"{abs(gain):.3f} {'better' if gain > 0 else 'worse'} than {theirs}"
    return f"{'but' if is_mixed else 'and'} {than}"


def _spread(row: ResultRow, other: ResultRow) -> float:
    """Differences up to this say nothing: the larger spread over seeds, at least half a digit."""
    return max(row.std or 0.0, other.std or 0.0, 0.0005)


def _progress(methods: Sequence[Method]) -> str:
    runs = [run for method in methods for run in method.runs]
    done = max(len(run.history) for run in runs)
    wanted = runs[0].config.get("training", {}).get("epochs")
    of = f" of {wanted}" if wanted else ""
    if len(runs) == 1:
        return f"Not finished yet: {methods[0].label}, after {done}{of} epochs."
    return f"{len(runs)} runs, none finished yet; the longest is at epoch {done}{of}."


def growth_title(runs: Sequence[Run]) -> str:
    """What the charts of growth show."""
    if len(runs) > 1:
        return "Clusters grow while the model trains"
    run = runs[0]
    line = run.history[run.kept_epoch - 1]
    counts = [
        f"{line['clusters'][table]} {entity}"
        for entity in ("user", "item")
        if (table := run.table_of(entity))
    ]
    return f"From one cluster to {' and '.join(counts)} clusters in {line['epoch']} epochs"


def axis_of(heading: str) -> str:
    """A chart's heading as the name of its axis: what is measured, without where."""
    return heading.split(" on ")[0].replace("Training loss", "loss")


def largest_cluster(sizes: Mapping[int, int], shares: Mapping[int, float], entity: str) -> str:
    """What the chart of sizes shows.

    >>> largest_cluster({0: 30, 1: 70}, {0: 0.9, 1: 0.1}, "item")
    'The largest item cluster holds 70 % of the items and 10 % of the interactions'
    """
    largest = max(sizes, key=lambda cluster: sizes[cluster])
    share = sizes[largest] / sum(sizes.values())
    return (
        f"The largest {entity} cluster holds {percent(share)} of the {entity}s and "
        f"{percent(shares[largest])} of the interactions"
    )


def cold_title(methods: Sequence[Method]) -> str:
    """What the charts of cold events show; neutral unless ours is ahead on both slices.

    methods : of ours the first is spoken of
    """
    ours = next((method for method in methods if method.embedding in OURS), None)
    full = next((method for method in methods if method.embedding == "full"), None)
    if ours is None or full is None:
        return "Cold against warm"
    task = ours.runs[0].task
    ahead = []
    for name in ("coldest_users", "coldest_items"):
        values = [
            [run.metrics.get(name, {}).get(FIGURE[task]) for run in method.finished if run.metrics]
            for method in (ours, full)
        ]
        if any(None in part for part in values):
            return "Cold against warm"
        (mean, std), (other, other_std) = map(mean_and_std, values)
        gain = mean - other if task == "binary" else other - mean
        ahead.append(gain > max(std or 0.0, other_std or 0.0, 0.0005))
    if all(ahead):
        name = _uncapitalized(_NAMES[ours.embedding])
        return f"Where data are scarce, {name} are ahead of full tables"
    return "Cold against warm"
