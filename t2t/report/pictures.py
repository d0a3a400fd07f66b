"""Attention weights as a picture: a heat map or lines between tokens, as SVG or, by matplotlib, as PNG."""

import importlib.util
import io
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np

from t2t.drawing import whole
from t2t.errors import UserError

CELL = 18  # pixels of a weight
ROW = 20  # pixels of a token beside lines
SPAN = 170  # pixels that lines go across
LETTER = 7  # pixels that a letter takes, at most
BLUE, GREY = "#1f5fa8", "#333333"

Form = Literal["grid", "lines"]


def svg(queries: list[str], keys: list[str], weights: np.ndarray, title: str, form: Form = "grid") -> str:
    """Weights [T S] of T queries over S keys as `grid` or `lines` draw them."""
    return (grid if form == "grid" else lines)(queries, keys, weights, title)


def grid(queries: list[str], keys: list[str], weights: np.ndarray, title: str) -> str:
    """An SVG with a row for each query and a column for each key; the darker, the more [T S] weighs."""
    left = 12 + LETTER * max(map(len, queries))
    top = 34 + LETTER * max(map(len, keys))
    width = max(left + CELL * len(keys), 12 + LETTER * len(title)) + 12
    parts = _begun(width, top + CELL * len(queries) + 12, title)
    for column, key in enumerate(keys):
        x = left + CELL * column + CELL // 2
        parts.append(f'<text transform="translate({x + 4} {top - 6}) rotate(-90)" fill="{GREY}">{escape(key)}</text>')
    for row, query in enumerate(queries):
        y = top + CELL * row
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end" fill="{GREY}">{escape(query)}</text>')
        for column, weight in enumerate(weights[row]):
            parts.append(
                f'<rect x="{left + CELL * column}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{BLUE}" '
                f'fill-opacity="{weight:.3f}" stroke="#dddddd" stroke-width="0.5"/>'
            )
    return whole("\n".join([*parts, "</svg>", ""]))


def lines(queries: list[str], keys: list[str], weights: np.ndarray, title: str) -> str:
    """An SVG with the queries on the left, the keys on the right and a line for each weight, as in figures 3 to 5."""
    left, top = 12 + LETTER * max(map(len, queries)), 34
    right = left + SPAN
    width = max(right + LETTER * max(map(len, keys)), LETTER * len(title)) + 24
    parts = _begun(width, top + ROW * max(len(queries), len(keys)) + 12, title)
    for tokens, x, anchor in ((queries, left - 6, "end"), (keys, right + 6, "start")):
        for row, token in enumerate(tokens):
            parts.append(
                f'<text x="{x}" y="{top + ROW * row + 14}" text-anchor="{anchor}" fill="{GREY}">{escape(token)}</text>'
            )
    for (row, column), weight in np.ndenumerate(weights):
        ends = f'x1="{left}" y1="{top + ROW * row + 10}" x2="{right}" y2="{top + ROW * column + 10}"'
        parts.append(f'<line {ends} stroke="{BLUE}" stroke-width="2" stroke-opacity="{weight:.3f}"/>')
    return whole("\n".join([*parts, "</svg>", ""]))


def _begun(width: int, height: int, title: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" fill="{GREY}">{escape(title)}</text>',
    ]


# ------------------------------------------------------------------------------ PNG


def check_png() -> None:
    """Raises UserError when what draws PNG is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a .png is drawn by matplotlib: pip install 't2t[png]'; .svg and .html need nothing")


def png(queries: list[str], keys: list[str], weights: np.ndarray, title: str, form: Form = "grid") -> bytes:
    """The same pictures, drawn by matplotlib.

    Raises:
        UserError: matplotlib is not installed.
    """
    check_png()
    from matplotlib.figure import Figure

    tall = max(len(queries), len(keys)) if form == "lines" else len(queries)
    figure = Figure(figsize=(2.5 + 0.25 * (len(keys) if form == "grid" else 14), 1.6 + 0.25 * tall), dpi=150)
    axes = figure.add_subplot()
    axes.set_title(_plain(title), fontsize=8, loc="left")
    (_grid_png if form == "grid" else _lines_png)(axes, [*map(_plain, queries)], [*map(_plain, keys)], weights)
    kept = io.BytesIO()
    figure.savefig(kept, format="png", bbox_inches="tight")
    return kept.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _grid_png(axes: Any, queries: list[str], keys: list[str], weights: np.ndarray) -> None:
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=8)
    axes.set_yticks(range(len(queries)), queries, fontsize=8)


def _lines_png(axes: Any, queries: list[str], keys: list[str], weights: np.ndarray) -> None:
    for (row, column), weight in np.ndenumerate(weights):
        axes.plot([0, 1], [row, column], color=BLUE, alpha=float(min(weight, 1)), linewidth=1.5)
    for tokens, x, align in ((queries, -0.03, "right"), (keys, 1.03, "left")):
        for row, token in enumerate(tokens):
            axes.text(x, row, token, ha=align, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.axis("off")
