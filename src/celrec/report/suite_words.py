"""The sentences of a suite's page. Each says what the figures say, whichever way they fall."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from celrec.report.suite_content import NotDone, Standing, Suite
from celrec.report.words import figure_name, plus_minus, readable_bytes, times

_MANY = 3
"""More losses are summed up, not listed."""


def headline(suite: Suite) -> str:
    """The sentence at the top: where ours is best, tied or behind, and by how much."""
    places = {budget: suite.place(budget) for budget in suite.budgets}
    compared = [budget for budget, place in places.items() if place not in (None, "alone")]
    if not compared:
        return _nothing_to_compare(suite)
    if len(suite.budgets) == 1:
        return _at_one_budget(suite, suite.budgets[0])
    best, tied, behind, alone, absent = (
        [budget for budget in suite.budgets if places[budget] == place]
        for place in ("best", "tied", "behind", "alone", None)
    )
    total = len(suite.budgets)
    if best:
        gains = [suite.gain(suite.others_at(budget)[0], budget) for budget in best]
        count = f"all {total}" if len(best) == total else f"{len(best)} of {total}"
        clauses = [f"are best at {count} budgets, by {gain_range(suite, gains)} over the next best"]
    elif len(tied) == total:
        return f"At equal bytes, {_ours(suite)} are tied for best at all {total} budgets."
    elif len(behind) == total:
        clauses = []
    else:
        clauses = [f"are best alone at none of {total} budgets"]
    if tied:
        clauses.append(f"tied for best at {len(tied)} ({shares(tied)})")
    if behind:
        is_all = len(behind) == total
        count = f"are behind at all {total} budgets" if is_all else f"behind at {len(behind)}"
        clauses.append(f"{count} ({_losses(suite, behind)})")
    if alone:
        clauses.append(f"without another figure to compare at {len(alone)} ({shares(alone)})")
    if absent:
        clauses.append(f"without a figure at {len(absent)} ({shares(absent)})")
    sentence = [", ".join(clauses[:-1]), clauses[-1]]
    return f"At equal bytes, {_ours(suite)} {', and '.join(filter(None, sentence))}."


def full_sentence(suite: Suite) -> str:
    """What full tables reach, and how ours stands to them; "" without full tables."""
    if suite.full is None:
        return ""
    clauses = _against(suite, suite.full)
    rest = f"; against them, {_ours(suite)} {clauses} of their bytes" if clauses else ""
    return f"Full tables reach {_reach(suite, suite.full)}{rest}."


def peer_sentence(suite: Suite) -> str:
    """What the best peer reaches, and how ours stands to it; "" without peers."""
    if not suite.peers:
        return ""
    best = suite.peers[0]
    clauses = _against(suite, best)
    rest = f"; against it, {_ours(suite)} {clauses} of the bytes of full tables" if clauses else ""
    who = f"From another package, {best.method}"
    if len(suite.peers) > 1:
        who = f"The best of {len(suite.peers)} from other packages, {best.method},"
    return f"{who} reaches {_reach(suite, best)}{rest}."


def _reach(suite: Suite, one: Standing) -> str:
    size = readable_bytes(one.total_bytes)
    return f"{figure_name(suite.task)} {plus_minus(one.mean, one.std)} in {size}"


def _against(suite: Suite, other: Standing) -> str:
    """At which budgets ours wins, ties and loses; "" where nothing is compared."""
    verdicts = {
        name: [
            budget
            for budget in suite.budgets
            if (one := suite.verdicts.get((other.method, budget))) and one.verdict == verdict
        ]
        for name, verdict in (("win", "win"), ("tie", "tie"), ("lose", "loss"))
    }
    clauses = [f"{name} at {shares(found)}" for name, found in verdicts.items() if found]
    return _and(clauses) if clauses else ""


def ranking_title(suite: Suite) -> str:
    """Where ours stands by mean rank."""
    rank, count = suite.rank(suite.ours), len(suite.mean_rank)
    if rank is None or count < 2:
        return "All figures"
    is_shared = list(suite.mean_rank.values()).count(suite.mean_rank[suite.ours]) > 1
    shared = " (shared)" if is_shared else ""
    return f"By mean rank, {_ours(suite)} are {ordinal(rank)}{shared} of {count}"


def ranking_note(suite: Suite) -> str:
    """What the columns of the ranking are."""
    better = "higher" if suite.task == "binary" else "lower"
    notes = [f"{figure_name(suite.task)} on the test set, {better} is better; the best is bold"]
    if any(one.std is not None for one in suite.standings.values()):
        notes[0] += f"; ± is the standard deviation over {_seeds(suite)}"
    notes += [
        "Under it: total bytes, which are all that serving needs / table bytes, the rows alone, "
        "where those are less",
        "Mean rank: over budgets; a method without a figure shares the last places there",
    ]
    if any((method, b) not in suite.standings for method in suite.methods for b in suite.budgets):
        notes.append("–: no figure; point at it for the reason, or see below")
    return ". ".join(notes) + "."


def verdicts_title(counts: Sequence[int]) -> str:
    """
    >>> verdicts_title([12, 1, 0])
    'Method by method at equal bytes: 12 wins, 1 tie, no losses'
    """
    return f"Method by method at equal bytes: {verdict_counts(counts)}"


def verdict_counts(counts: Sequence[int]) -> str:
    """Wins, ties and losses, counted.

    >>> verdict_counts([1, 2, 0])
    '1 win, 2 ties, no losses'
    """
    names = (("win", "wins"), ("tie", "ties"), ("loss", "losses"))
    return ", ".join(
        f"{count or 'no'} {one if count == 1 else many}"
        for count, (one, many) in zip(counts, names, strict=True)
    )


def verdicts_note(suite: Suite) -> str:
    """How to read the comparisons."""
    unit = (
        "how much higher its AUC is"
        if suite.task == "binary"
        else "the share of the other's squared error that it saves"
    )
    tie = suite.content.tie
    small = "small" if tie is None else f"below {gain_text(suite.task, tie, signed=False)}"
    return (
        f"{_capital(_ours(suite))} against each method: {unit}, and the 95 % interval under it. "
        "Both predict the same test events; the interval is from a bootstrap over users. A tie: "
        f"the interval holds 0 and the difference is {small}; else the better one wins."
    )


def items_title(suite: Suite, at_budget: Mapping[float, Mapping[str, float]]) -> str:
    """At how many budgets ours ranks all items best.

    at_budget : NDCG by method, for every budget
    """
    compared = [means for means in at_budget.values() if suite.ours in means and len(means) > 1]
    if not compared:
        return "Ranking all items"
    num_best = sum(means[suite.ours] == max(means.values()) for means in compared)
    return (
        f"Ranking all items, {_ours(suite)} have the best NDCG at {num_best} of {len(compared)} "
        f"budget{'' if len(compared) == 1 else 's'}"
    )


def items_note(suite: Suite) -> str:
    """How rankings were made and measured."""
    counts = sorted({round(one["num_ranked_users"]) for one in suite.content.item_ranking})
    users = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    note = (
        f"NDCG, and under it NDCG of the first ten places; means over {_seeds(suite)}. For each of "
        f"{users} test users, drawn with the seed and the same for every method, the model ranks "
        "all items but those that the user met in training. Items of equal scores share their "
        "places: NDCG is averaged over their orders."
    )
    if suite.content.negatives is not None:
        drawn = "negative is" if suite.content.negatives == 1 else "negatives are"
        note += (
            f" The data hold positives only: {suite.content.negatives} {drawn} drawn for each, "
            "among items that the user did not meet. AUC, which chooses settings, is on these."
        )
    return note


def cold_title(num_best: int, num_cases: int, suite: Suite) -> str:
    """What the charts of cold slices show."""
    if not num_cases:
        return "Where data are scarce"
    return (
        f"Where data are scarce, {_ours(suite)} have the best figure in {num_best} of "
        f"{num_cases} cases"
    )


def slice_name(name: str) -> str:
    """A slice of metrics.json in words.

    >>> slice_name("users_at_most_5"), slice_name("coldest_items"), slice_name("new_ones")
    ('Users with at most 5 training events', 'The tenth with the coldest items', 'New ones')
    """
    if found := re.fullmatch(r"(users|items)_at_most_(\d+)", name):
        return f"{found[1].title()} with at most {found[2]} training events"
    if found := re.fullmatch(r"coldest_(users|items)", name):
        return f"The tenth with the coldest {found[1]}"
    return _capital(name.replace("_", " "))


def missing_title(missing: Sequence[NotDone]) -> str:
    """How many methods lack figures, and why."""
    verbs = {
        "does not fit": ("does not fit a budget", "do not fit a budget"),
        "failed": ("failed", "failed"),
        "no result": ("has no result at a budget", "have no result at a budget"),
    }
    clauses = []
    for status, (one, many) in verbs.items():
        count = len({line.method for line in missing if line.status == status})
        if count:
            clauses.append(f"{count} method {one}" if count == 1 else f"{count} methods {many}")
    return f"What is missing: {', '.join(clauses)}"


def measured(suite: Suite) -> str:
    """How the figures came about, in short."""
    content = suite.content
    tuning = "Settings are chosen on validation data"
    if content.trials is not None:
        trials = "trial" if content.trials == 1 else "trials"
        tuning += f", with {content.trials} {trials} for every method"
    if content.tuning_budget is not None:
        tuning += f" at {share(content.tuning_budget)} of the bytes, and used at all budgets"
    text = (
        "A budget is a share of the bytes of full float32 tables. It covers all that serving "
        f"needs: rows, codes, vectors of single users and items. {tuning}. Final runs train on "
        f"all but the test data and are scored once, for {_seeds(suite)}."
    )
    if content.peers:
        text += (
            f" From other packages ({_and(content.peers)}): tuned with as many trials, without a "
            "budget; their bytes are those of the arrays that their packages predict from. "
        )
        text += (
            "Their scores rank the items of a user and are no probabilities, but AUC pools users."
            if suite.task == "binary"
            else "Their predictions are cut off at the ends of the ratings, those of others not."
        )
    return text


# --- numbers in words ----------------------------------------------------------------------------


def share(value: float) -> str:
    """A budget in per cent.

    >>> share(0.01), share(0.125), share(0.0005)
    ('1 %', '12.5 %', '0.05 %')
    """
    return f"{100 * value:.3g} %"


def smaller(value: float) -> str:
    """How much smaller than full tables a share of their bytes is.

    >>> smaller(0.01), smaller(0.25), smaller(0.4)
    ('100× smaller', '4× smaller', '2.5× smaller')
    """
    return f"{times(1 / value).removesuffix('.0')}× smaller"


def shares(values: Iterable[float]) -> str:
    """
    >>> shares([0.01, 0.05, 0.1])
    '1 %, 5 % and 10 %'
    """
    return _and([share(value) for value in values])


def gain_text(task: str, gain: float, *, signed: bool = True) -> str:
    """A gain: of AUC, or of the squared error in per cent.

    >>> gain_text("binary", 0.0123), gain_text("rating", -0.0123), gain_text("binary", -0.0001)
    ('+0.012', '−1.2 %', '0.000')
    """
    digits, unit = (3, "") if task == "binary" else (1, " %")
    value = round(gain if task == "binary" else 100 * gain, digits)
    sign = ("+" if value > 0 else "−" if value < 0 else "") if signed else ""
    return f"{sign}{abs(value):.{digits}f}{unit}"


def gain_range(suite: Suite, gains: Sequence[float]) -> str:
    """The sizes of gains, from the least to the largest, with what they are of."""
    sizes = [abs(gain) for gain in gains]
    ends = [gain_text(suite.task, end, signed=False) for end in (min(sizes), max(sizes))]
    least = "0.001" if suite.task == "binary" else "0.1 %"
    ends = [end if re.search("[1-9]", end) else f"less than {least}" for end in ends]
    text = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return f"{text} AUC" if suite.task == "binary" else f"{text} of the squared error"


def interval(task: str, low: float, high: float) -> str:
    """
    >>> interval("binary", -0.001, 0.02), interval("rating", 0.01, 0.02)
    ('−0.001 to +0.020', '+1.0 to +2.0')
    """
    return " to ".join(gain_text(task, end).removesuffix(" %") for end in (low, high))


def ordinal(number: int) -> str:
    """
    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 < number % 100 < 20 else ending}"


def _at_one_budget(suite: Suite, budget: float) -> str:
    others = suite.others_at(budget)
    begin = f"At {share(budget)} of the bytes of full tables, {_ours(suite)} are"
    place = suite.place(budget)
    if place == "best":
        next_best = others[0].method
        gap = gain_range(suite, [suite.gain(others[0], budget)])
        return f"{begin} best of {len(others) + 1}, by {gap} over the next best, {next_best}."
    if place == "tied":
        tied = [one.method for one in others if suite.verdict(one, budget) == "tie"]
        return f"{begin} tied for best of {len(others) + 1}, with {_few(tied)}."
    lead = _losses(suite, [budget]).removesuffix(f" at {share(budget)}")
    return f"{begin} behind: {lead}."


def _nothing_to_compare(suite: Suite) -> str:
    name = figure_name(suite.task)
    ours = [
        f"{plus_minus(one.mean, one.std)} at {share(budget)}"
        for budget in suite.budgets
        if (one := suite.standings.get((suite.ours, budget)))
    ]
    if ours:
        return (
            f"{_capital(_ours(suite))} reach {name} {_and(ours)} of the bytes of full tables; no "
            "other method has a figure at these budgets."
        )
    best = [
        f"{others[0].method} ({plus_minus(others[0].mean, others[0].std)}) at {share(budget)}"
        for budget in suite.budgets
        if (others := suite.others_at(budget))
    ]
    if best:
        return f"{_capital(_ours(suite))} have no figure; the best {name} is of {_and(best)}."
    return "No method has a figure yet."


def _losses(suite: Suite, budgets: Sequence[float]) -> str:
    """To whom ours loses most, by how much, where.

    budgets : where it loses
    """
    worst = []
    for budget in budgets:
        lost = [one for one in suite.others_at(budget) if suite.verdict(one, budget) == "loss"]
        first = min(lost, key=lambda one: suite.gain(one, budget))
        worst.append((first.method, suite.gain(first, budget), budget))
    gaps = gain_range(suite, [gain for _, gain, _ in worst])
    if len(worst) == 1:
        return f"{worst[0][0]} leads by {gaps} at {share(worst[0][2])}"
    if len({method for method, _, _ in worst}) == 1:
        return f"{worst[0][0]} leads by {gaps} at {shares(budget for _, _, budget in worst)}"
    if len(worst) > _MANY:
        return f"the leaders ({_few(dict.fromkeys(name for name, _, _ in worst))}) are {gaps} ahead"
    (method, gain, budget), *rest = worst
    each = [f"{method} leads by {gain_range(suite, [gain])} at {share(budget)}"]
    each += [
        f"{method} by {gain_text(suite.task, gain, signed=False)} at {share(budget)}"
        for method, gain, budget in rest
    ]
    return _and(each)


def _seeds(suite: Suite) -> str:
    count = len(suite.content.seeds)
    return f"{count} seed{'' if count == 1 else 's'}"


def _ours(suite: Suite) -> str:
    return f"{suite.ours} tables"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    if len(names) <= _MANY:
        return _and(names)
    return f"{', '.join(names[:_MANY])} and {len(names) - _MANY} more"


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
