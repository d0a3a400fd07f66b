"""Curves as a picture: panels beside each other, one legend, in SVG that needs nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from t2t.drawing import whole

WIDTH, HEIGHT = 400, 300  # pixels of a panel, its title and the words along its axes included
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 50  # of these, around what is drawn
LINE = 22  # of the legend and of titles
ENTRY = 250  # pixels of a name in the legend
# Colours that also those tell apart who see few (Okabe and Ito 2008); dashes, so that a curve shows under another.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("none", "6 3", "2 3")


class Panel(NamedTuple):
    """Curves over one pair of axes; the lower axis is logarithmic."""

    title: str
    x: str  # what the lower axis is
    curves: Mapping[str, Sequence[tuple[float, float]]]  # by name: points (x, y), x ascending
    label: Callable[[float], str]  # what stands at a height
    log: bool = True  # heights are logarithmic too; else they go from 0 to 1


def picture(title: str, panels: Sequence[Panel], columns: int = 2) -> str:
    """An SVG of all panels; a curve has the same colour in each, by the order in which names come first."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    width = WIDTH * min(columns, len(panels))
    across = max(1, width // ENTRY)
    top, legend = TOP, LINE * -(-len(names) // across)
    height = top + HEIGHT * -(-len(panels) // columns) + legend + LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(width / 2, 24, title, 'text-anchor="middle" font-size="15" font-weight="600"'),
    ]
    for i, panel in enumerate(panels):
        x, y = WIDTH * (i % columns), top + HEIGHT * (i // columns)
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel, names)}</g>')
    for i, name in enumerate(names):
        x, y = 20 + ENTRY * (i % across), height - legend + LINE * (i // across) - 4
        parts += [_line([(x, y - 4), (x + 26, y - 4)], i), _text(x + 34, y, name)]
    return whole("\n".join([*parts, "</svg>", ""]))


def _panel(panel: Panel, names: list[str]) -> str:
    points = [point for curve in panel.curves.values() for point in curve]
    places = sorted({x for x, _ in points})
    steps = _powers([y for _, y in points]) if panel.log else [0.0, 0.25, 0.5, 0.75, 1.0]
    across = _scale(math.log(places[0]), math.log(places[-1]), LEFT, WIDTH - RIGHT)
    high = (lambda y: math.log(y)) if panel.log else float
    up = _scale(high(steps[0]), high(steps[-1]), HEIGHT - BOTTOM, TOP)
    parts = [_text(WIDTH / 2, 26, panel.title, 'text-anchor="middle" font-weight="600"')]
    for step in steps:
        y = up(high(step))
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, panel.label(step), 'text-anchor="end"'))
    for place in places:
        parts.append(_text(across(math.log(place)), HEIGHT - BOTTOM + 18, f"{place:,}", 'text-anchor="middle"'))
    parts.append(_text(WIDTH / 2, HEIGHT - BOTTOM + 38, panel.x, 'text-anchor="middle"'))
    for name, curve in panel.curves.items():
        parts.append(_line([(across(math.log(x)), up(high(y))) for x, y in curve], names.index(name), dots=True))
    return "\n".join(parts)


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of ten around all values, two at least."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    """From values to pixels."""
    return lambda value: begin + (end - begin) * ((value - low) / (high - low) if high > low else 0.5)


def _text(x: float, y: float, text: str, how: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#222222" {how}>{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], number: int, *, dots: bool = False) -> str:
    """Of curve `number`: its colour and its dashes."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points if dots]
    return "".join([line, *marks])
