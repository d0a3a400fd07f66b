"""Tables as text: rows of cells by the heads of their columns, which are of two lines."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from t2t import cost

Head = tuple[str, str]
Row = dict[Head, str]  # every row has the same heads, in the order of the columns


def aligned(rows: Sequence[Row], words: Collection[Head]) -> str:
    """Columns side by side, those under `words` flush left, numbers flush right."""
    lines = [*zip(*rows[0], strict=True), *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if head in words else ">" for head in rows[0]]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Row], words: Collection[Head]) -> str:
    """A table of GitHub's Markdown; the two lines of a head become one."""
    heads = [" ".join(head).strip() for head in rows[0]]
    lines = [heads, ["---" if head in words else "---:" for head in rows[0]], *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------------------ What stands in a cell, and below

Marks = Mapping[tuple[str, str], str]  # a footnote, such as "[1]", for each name of a score and its signature


def marks_of(rows: Sequence[Mapping[str, Any]], readings: Sequence[str]) -> Marks:
    """For the scores called `readings` of all runs in these rows ("ours" and "changed")."""
    shown = [each["scores"] for row in rows for each in (row["ours"], *row["changed"]) if each]
    keys = [(name, scores[name]["signature"]) for name in readings for scores in shown if name in scores]
    return {key: f"[{i}]" for i, key in enumerate(dict.fromkeys(keys), 1)}


def number(value: float | None, form: str) -> str:
    """Nothing for None."""
    return "" if value is None else f"{value:{form}}"


def millions(value: int | None) -> str:
    """A count in millions."""
    return number(value and value / 1e6, ".1f")


def flops(value: float | None) -> str:
    """As the paper writes them."""
    return "" if value is None else cost.short(value)


def reading(run: Mapping[str, Any], name: str, marks: Marks) -> str:
    """A score and its footnote; a dash where an evaluation lacks it."""
    score = run["scores"].get(name)
    return f"{score['score']:.2f} {marks[name, score['signature']]}" if score else "-"


def of_registered(value: int, registered: int) -> str:
    """A run's own steps or averaged checkpoints, and how many the experiment has where these are others."""
    return f"{value:,}" if value == registered else f"{value:,} of {registered:,}"


def made(experiment: str, run: Mapping[str, Any]) -> str:
    """Where a run lies and how it was made."""
    commit, speed = run["commit"], run["tokens_per_second"]
    short = f"commit {commit[:12]}{'+' * commit.endswith('+')}" if commit else "no known commit"
    rate = f", {speed:,.0f} tokens/s" if speed else ""
    return f"{experiment}: {run['run']}, {short}, {run['device']}{rate}"
