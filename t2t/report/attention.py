"""Who looks at whom, in encoder and decoder, over any sentence and its output (the paper's figures 3 to 5)."""

import base64
import dataclasses
import functools
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from t2t import checkpoint
from t2t import run as runs
from t2t.batch import EOS
from t2t.constraints import constraint_of
from t2t.data.batching import fill
from t2t.data.task import Pair
from t2t.data.vocabulary import Vocabularies
from t2t.decode import decode
from t2t.errors import UserError, unknown
from t2t.evaluate import check_lengths
from t2t.experiment import Experiment
from t2t.report import pictures
from t2t.report.html import document

# Where the module sows its weights [N B H T S], and what they are called in a title.
PLACES = {
    "encoder": (("encoder", "self_attention"), "encoder over source"),
    "decoder": (("decoder", "self_attention"), "decoder over its output so far"),
    "cross": (("decoder", "cross_attention"), "decoder over source"),
}
START = "<start>"  # the zero vector that the decoder begins with
LEVELS = 255  # a weight on the page is a byte: 1 is 255
HEIGHT = 760  # pixels of the page inside of a notebook


class View(NamedTuple):
    """The weights of one kind of attention over a sentence."""

    queries: list[str]  # T tokens that look; of the decoder those that it is about to say
    keys: list[str]  # S tokens that are looked at
    weights: np.ndarray  # [N H T S], rows sum to 1

    def chosen(self, layer: int | None = None, head: int | None = None) -> tuple[np.ndarray, str]:
        """The weights [T S] of a layer (from 1; None: the last) and a head (None: the mean), and their name.

        Raises:
            UserError: there is no such layer or head.
        """
        _check_number("layer", layer, self.weights.shape[0])
        _check_number("head", head, self.weights.shape[1])
        layer = layer or len(self.weights)
        found = self.weights[layer - 1]
        if head is None:
            return found.mean(0), f"layer {layer}, mean of {len(found)} heads"
        return found[head - 1], f"layer {layer}, head {head}"

    def facts(self) -> dict[str, Any]:
        """What the page needs: tokens, the sizes [N H], and the weights as bytes in base64."""
        levels = np.rint(self.weights * LEVELS).astype(np.uint8)
        sizes = dict(zip(("layers", "heads"), levels.shape, strict=False))
        return {
            **sizes,
            "queries": self.queries,
            "keys": self.keys,
            "weights": base64.b64encode(levels.tobytes()).decode(),
        }


@dataclasses.dataclass(frozen=True)
class Attention:
    """A sentence, its output and the weights between their tokens; a notebook shows it as a page to choose from."""

    source: str
    output: str
    views: dict[str, View]  # by kind: "encoder", "decoder", "cross", those that the architecture has

    def view(self, kind: str = "") -> View:
        """The weights of a kind; "": the decoder's over the source, or else the first there is.

        Raises:
            UserError: the architecture has none of that kind.
        """
        kind = kind or default_kind(self.views)
        if kind not in self.views:
            raise unknown("kind of attention", kind, self.views)
        return self.views[kind]

    def svg(
        self, kind: str = "", layer: int | None = None, head: int | None = None, form: pictures.Form = "grid"
    ) -> str:
        """One head, or the mean of a layer's, as a picture; raises UserError when there is none such."""
        return pictures.svg(*self._shown(kind, layer, head), form)

    def png(
        self, kind: str = "", layer: int | None = None, head: int | None = None, form: pictures.Form = "grid"
    ) -> bytes:
        """The same as PNG; raises UserError also when matplotlib is not installed."""
        return pictures.png(*self._shown(kind, layer, head), form)

    def html(self, kind: str = "", layer: int | None = None, head: int | None = None, about: str = "") -> str:
        """A page of its own on which all can be chosen; the arguments are what it shows first."""
        shown = {"kind": kind or default_kind(self.views), "layer": layer, "head": head}
        content = {"sentences": [self.facts()], "shown": shown, "weights": about}
        return document(f"attention: {self.source}", {"attention": content})

    def facts(self) -> dict[str, Any]:
        """What the page needs."""
        views = {kind: view.facts() for kind, view in self.views.items()}
        return {"source": self.source, "output": self.output, "views": views}

    def _shown(self, kind: str, layer: int | None, head: int | None) -> tuple[list[str], list[str], np.ndarray, str]:
        kind = kind or default_kind(self.views)
        view = self.view(kind)
        weights, name = view.chosen(layer, head)
        return view.queries, view.keys, weights, f"{PLACES[kind][1]}, {name}"

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html())}" width="100%" height="{HEIGHT}" frameborder="0"></iframe>'

    def _repr_svg_(self) -> str:
        return self.svg()


def default_kind(there: Any) -> str:
    """The decoder's attention over the source, or else the first there is."""
    return "cross" if "cross" in there else next(iter(there))


def _check_number(name: str, number: int | None, most: int) -> None:
    if number is not None and not 1 <= number <= most:
        raise UserError(f"--{name} {number}: the model has {most}, counted from 1")


# ------------------------------------------------------------------------------ Of a model


def of_run(folder: str, text: str, to: str = "", average: int = 1) -> Attention:
    """`of_text` with the mean of the last `average` checkpoints of a run folder, for notebooks.

    Raises:
        UserError: as `of_text`; not a run folder, or one with fewer checkpoints.
    """
    run, experiment, vocabulary = runs.load(Path(folder))
    params, _ = checkpoint.load_params(run, experiment, average)
    return of_text(experiment, vocabulary, params, text, to)


def of_text(experiment: Experiment, vocabulary: Vocabularies, params: Any, text: str, to: str = "") -> Attention:
    """The attention over `text` and `to`, or where that is empty the best output for it.

    Raises:
        UserError: there is no text, it is too long, the task cannot take it, or the architecture shows no attention.
    """
    if not text.strip():
        raise UserError("no text to look at: give some words with --text")
    sizes(experiment, params)
    if to.strip():
        return of_pairs(experiment, vocabulary, params, experiment.task.given([Pair(text, to)]))[0]
    (source,) = vocabulary.source.encode([text])
    check_lengths(experiment.model, [source], "--text")
    model, longest = experiment.model.build(), experiment.model.longest
    constraint = constraint_of(experiment.task, vocabulary, [text])
    how = experiment.decoding
    ((_, best),) = decode(model, params, [source], how, longest=longest, constraint=constraint, wanted=1)
    target = [*best[0].tokens, EOS][:longest]
    ((output,), _) = experiment.task.outputs([text], [vocabulary.target.decode(best[0].tokens)])
    (views,) = _views(model, vocabulary, params, [source], [target])
    return Attention(text, output, views)


def of_pairs(experiment: Experiment, vocabulary: Vocabularies, params: Any, pairs: Sequence[Pair]) -> list[Attention]:
    """The attention over each pair, its target fed to the decoder as it stands.

    Raises:
        UserError: a sentence is too long, or the architecture shows no attention.
    """
    sources, targets = vocabulary.encode([*pairs])
    check_lengths(experiment.model, [*sources, *targets], "the text")
    found = _views(experiment.model.build(), vocabulary, params, sources, targets)
    return [Attention(pair.source, pair.target, views) for pair, views in zip(pairs, found, strict=True)]


def _views(
    model: Any, vocabulary: Vocabularies, params: Any, sources: list[list[int]], targets: list[list[int]]
) -> list[dict[str, View]]:
    """The weights over each pair of token ids, EOS at the end of each."""
    batch = [fill(side, len(side), max(map(len, side))) for side in (sources, targets)]
    sown = jax.device_get(_sown(model, params, *batch))
    found = []
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        said, heard = vocabulary.target.pieces(target), vocabulary.source.pieces(source)
        tokens = {"encoder": (heard, heard), "decoder": (said, [START, *said[:-1]]), "cross": (said, heard)}
        views = {}
        for kind, weights in sown.items():
            queries, keys = tokens[kind]
            views[kind] = View(queries, keys, np.asarray(weights[:, row, :, : len(queries), : len(keys)], np.float32))
        found.append(views)
    return found


@functools.partial(jax.jit, static_argnames="model")
def _sown(model: Any, params: Any, source: Any, target: Any) -> dict[str, jax.Array]:
    """By kind the weights [N B H T S] that the module lets out over a batch, of those that have these shapes.

    Raises:
        UserError: it lets out none.
    """
    _, kept = model.apply(params, source, target, mutable=["intermediates"])
    lengths = {"encoder": (source, source), "decoder": (target, target), "cross": (target, source)}
    found = {}
    for kind, ((stack, name), _) in PLACES.items():
        weights = kept.get("intermediates", {}).get(stack, {}).get(name, {}).get("weights", [None])[0]
        shape = tuple(side.tokens.shape[1] for side in lengths[kind])
        if weights is not None and weights.ndim == 5 and weights.shape[3:] == shape:
            found[kind] = weights
    if not found:
        raise UserError(f"{type(model).__name__} shows no attention weights between tokens")
    return found


def sizes(experiment: Experiment, params: Any) -> dict[str, tuple[int, int]]:
    """Layers and heads of each kind of attention that the architecture shows; nothing is computed.

    Raises:
        UserError: it shows none.
    """
    model, batch = experiment.model.build(), [fill([[EOS] * n], 1, n) for n in (2, 3)]
    found = jax.eval_shape(lambda params: _sown(model, params, *batch), params)
    return {kind: (weights.shape[0], weights.shape[2]) for kind, weights in found.items()}


def check(there: dict[str, tuple[int, int]], kind: str, layer: int | None, head: int | None) -> None:
    """Raises UserError when what there is, by `sizes`, has no such kind ("": the default), layer or head."""
    kind = kind or default_kind(there)
    if kind not in there:
        raise unknown("kind of attention (--which)", kind, there)
    _check_number("layer", layer, there[kind][0])
    _check_number("head", head, there[kind][1])
