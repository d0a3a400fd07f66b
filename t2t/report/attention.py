"""Who looks at whom: the decoder's attention over one source, as a picture (the paper's figures 3 to 5 in kind)."""

from typing import Any
from xml.sax.saxutils import escape

import jax
import numpy as np

from t2t.batch import EOS
from t2t.constraints import constraint_of
from t2t.data.batching import fill
from t2t.data.vocabulary import Vocabularies
from t2t.decode import decode
from t2t.drawing import whole
from t2t.errors import UserError
from t2t.evaluate import check_lengths
from t2t.experiment import Experiment, override

CELL = 18  # pixels of a weight
LETTER = 7  # pixels that a letter takes, at most


def cross_attention(
    experiment: Experiment, vocabulary: Vocabularies, params: Any, text: str
) -> tuple[list[str], list[str], np.ndarray]:
    """The pieces of `text`, the tokens of its best output, and who looked at what: [N H T S], rows sum to 1.

    Raises:
        UserError: there is no text, or the architecture does not show its attention.
    """
    if not text.strip():
        raise UserError("no text to look at: give some words with --text")
    if hasattr(experiment.model, "attention"):
        experiment = override(experiment, {"model.attention": "dense"})  # alone it has the weights all at once
    model: Any = experiment.model.build()
    (source,) = vocabulary.source.encode([text])
    check_lengths(experiment.model, [source], "--text")
    constraint = constraint_of(experiment.task, vocabulary, [text])
    longest = experiment.model.longest
    how = experiment.decoding
    ((_, best),) = decode(model, params, [source], how, longest=longest, constraint=constraint, wanted=1)
    target = [*best[0].tokens, EOS][:longest]
    batch = [fill([ids], 1, len(ids)) for ids in (source, target)]
    _, kept = model.apply(params, *batch, mutable=["intermediates"])
    try:
        (weights,) = kept["intermediates"]["decoder"]["cross_attention"]["weights"]
    except KeyError:
        raise UserError(f"{type(model).__name__} has no attention over the source to show") from None
    return vocabulary.source.pieces(source), vocabulary.target.pieces(target), np.asarray(jax.device_get(weights))[:, 0]


def chosen(weights: np.ndarray, layer: int | None, head: int | None) -> tuple[np.ndarray, str]:
    """Of weights [N H T S] those of a layer (from 1; None: the last) and a head (None: the mean), and their name.

    Raises:
        UserError: there is no such layer or head.
    """
    for name, number, most in (("layer", layer, weights.shape[0]), ("head", head, weights.shape[1])):
        if number is not None and not 1 <= number <= most:
            raise UserError(f"--{name} {number}: the model has {most}, counted from 1")
    layer = layer or len(weights)
    found = weights[layer - 1]
    if head is None:
        return found.mean(0), f"layer {layer}, mean of {len(found)} heads"
    return found[head - 1], f"layer {layer}, head {head}"


def picture(source: list[str], target: list[str], weights: np.ndarray, title: str) -> str:
    """An SVG with a row for each target token, a column for each source piece; the darker, the more [T S] weighs."""
    left = 12 + LETTER * max(map(len, target))
    top = 34 + LETTER * max(map(len, source))
    width = max(left + CELL * len(source), 12 + LETTER * len(title)) + 12
    height = top + CELL * len(target) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" fill="#333333">{escape(title)}</text>',
    ]
    for column, piece in enumerate(source):
        x = left + CELL * column + CELL // 2
        parts.append(
            f'<text transform="translate({x + 4} {top - 6}) rotate(-90)" fill="#333333">{escape(piece)}</text>'
        )
    for row, token in enumerate(target):
        y = top + CELL * row
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end" fill="#333333">{escape(token)}</text>')
        for column, weight in enumerate(weights[row]):
            parts.append(
                f'<rect x="{left + CELL * column}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="#1f5fa8" '
                f'fill-opacity="{weight:.3f}" stroke="#dddddd" stroke-width="0.5"/>'
            )
    return whole("\n".join([*parts, "</svg>", ""]))
