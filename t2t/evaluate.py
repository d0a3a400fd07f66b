"""A split under a model: perplexity by teacher forcing, then outputs, then scores."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from t2t.batch import Batch
from t2t.constraints import constraint_of
from t2t.data.batching import evaluation_batches
from t2t.data.cleaning import NOT_UTF_8, first_fault
from t2t.data.task import Pair, fingerprint
from t2t.data.vocabulary import Vocabularies
from t2t.decode import decode, forced_scores
from t2t.errors import UserError
from t2t.experiment import Experiment, to_json
from t2t.loss import Sums, cross_entropy
from t2t.models import Architecture
from t2t.run import Member, Run, write_evaluation, write_evaluation_at
from t2t.sharding import on_mesh

Say = Callable[[str], None]
BATCH_TOKENS = 4096  # most target positions of an evaluation batch: the logits of one lie in memory whole


@functools.partial(jax.jit, static_argnames="model")
def batch_sums(model: Any, params: Any, batch: Batch) -> Sums:
    """The sums of `loss.cross_entropy`, without smoothing, over a batch."""
    logits = model.apply(params, batch.source, batch.target)
    return cross_entropy(logits, batch.target.tokens, batch.target.segments, 0.0)


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as text and as tokens, EOS at the end of each."""

    name: str
    pairs: list[Pair]
    sources: list[list[int]]
    targets: list[list[int]]

    def batches(self) -> list[Batch]:
        """Batches of few shapes, nothing left out."""
        return [batch for _, batch in evaluation_batches(self.sources, self.targets, BATCH_TOKENS)]


def read_split(experiment: Experiment, vocabulary: Vocabularies, name: str) -> Split:
    """All pairs of a split; a line without text on either side stays in its place.

    Raises:
        UserError: its files are missing, broken, empty or not UTF-8, or a sentence has more tokens than there may be.
    """
    pairs = list(experiment.task.pairs(name))
    if not pairs:
        raise UserError(f"the {name} split is empty")
    for number, pair in enumerate(pairs, 1):
        if first_fault(pair, experiment.task.has_sources) == NOT_UTF_8:
            raise UserError(f"the {name} split has a text that is not UTF-8: pair {number:,}")
    sources, targets = vocabulary.encode(pairs, experiment.task.has_sources)
    check_lengths(experiment.model, [*sources, *targets], f"the {name} split")
    return Split(name, pairs, sources, targets)


def check_lengths(model: Architecture, sentences: list[list[int]], where: str) -> None:
    """Raises UserError when a sentence has more tokens than the model has positions for."""
    longest = max(map(len, sentences), default=0)
    if model.longest is not None and longest > model.longest:
        raise UserError(
            f"{where} has a sentence of {longest} tokens; the model takes {model.longest} (--model.max_length)"
        )


def perplexity(model: Any, params: Any, batches: list[Batch]) -> dict[str, float]:
    """Per token, EOS counted, without smoothing: {"loss" in nats, "perplexity", "accuracy", "tokens"}."""
    total: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(batch_sums(model, params, on_mesh(batch))).items():
            total[name] = total.get(name, 0.0) + float(value)
    return averages(total)


def averages(total: dict[str, float]) -> dict[str, float]:
    """Sums divided by their denominator, the one place that does: see `loss.cross_entropy` for their names."""
    tokens = max(total["tokens"], 1.0)
    nll = total["nll"] / tokens
    return {
        "loss": total["loss"] / tokens,
        "perplexity": math.exp(min(nll, 700.0)),
        "accuracy": total["correct"] / tokens,
        "tokens": int(total["tokens"]),
    }


def evaluate(
    run: Run, experiment: Experiment, vocabulary: Vocabularies, params: Any, steps: list[int], name: str, say: Say
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Perplexity, outputs and scores of a split, written below evaluations/ (by the first process, if there are many).

    The work is split over the mesh that is set. `steps` are those of the checkpoints that `params` is the average of.
    Returns what scores.json says, the task among it, with the "folder" it lies in; and the (source, output, reference)
    of each pair. Texts without sources have a perplexity alone.

    Raises:
        UserError: see `read_split`; or the run folder cannot be written.
    """
    weights = {"checkpoints": steps, "task": to_json(experiment.task)}
    summary, lines = _measure(experiment, vocabulary, params, name, weights, say)
    # What distinguishes it from other evaluations of these weights: the data and the knobs of decoding.
    how = [summary[key] for key in ("data", "decoding", "constraint", "dtype") if summary[key]]
    digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8]
    folder = write_evaluation(run, f"{name}-step{steps[-1]}-average{len(steps)}-{digest}", lines, summary)
    triples = zip(*(lines.get(kind, []) for kind in ("sources", "hypotheses", "references")), strict=False)
    return {**summary, "folder": str(folder)}, list(triples)


def evaluate_to(
    folder: Path,
    members: Sequence[Member],
    experiment: Experiment,
    vocabulary: Vocabularies,
    params: Any,
    name: str,
    say: Say,
) -> dict[str, Any]:
    """The same of one run, or of several decoded together (`t2t.models.ensemble`), written to a folder of its own.

    `experiment` has the model of all `members` and the task that they are evaluated on, which scores.json says in place
    of one run's checkpoints.

    Raises:
        UserError: see `read_split`; or the folder cannot be written.
    """
    weights = {"members": [each._asdict() for each in members], "task": to_json(experiment.task)}
    summary, lines = _measure(experiment, vocabulary, params, name, weights, say)
    write_evaluation_at(folder, lines, summary)
    return {**summary, "folder": str(folder)}


def _measure(
    experiment: Experiment, vocabulary: Vocabularies, params: Any, name: str, weights: dict[str, Any], say: Say
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What scores.json says, with the `weights` that are evaluated, and the lines of the files beside it."""
    split, model = read_split(experiment, vocabulary, name), experiment.model.build()
    pairs = f"{len(split.pairs):,} {name} {'pairs' if experiment.task.has_sources else 'texts'}"
    say(f"evaluating {pairs}: perplexity")
    measured = perplexity(model, params, split.batches())
    texts, references = ([pair[side] for pair in split.pairs] for side in range(2))
    outputs, facts, constraint = [], {}, None
    if experiment.task.has_sources:
        say(f"evaluating {pairs}: decoding with beam {experiment.decoding.beam}")
        decoded, longest = [""] * len(texts), experiment.model.longest
        constraint = constraint_of(experiment.task, vocabulary, texts)
        how = experiment.decoding
        found = decode(model, params, split.sources, how, longest=longest, constraint=constraint, wanted=1)
        for i, best in found:
            decoded[i] = vocabulary.target.decode(best[0].tokens)
        outputs, facts = experiment.task.outputs(texts, decoded)
    summary = {
        "split": name,
        "perplexity": measured["perplexity"],
        "scores": {name: score._asdict() for name, score in experiment.task.score(outputs, references).items()},
        "tokens": measured["tokens"],
        **weights,
        "decoding": dataclasses.asdict(experiment.decoding) if experiment.task.has_sources else None,
        "dtype": getattr(experiment.model, "dtype", None),  # not every architecture has a choice
        "data": fingerprint(experiment.task.inputs(name)),
        "constraint": constraint and constraint.knobs,
        "outputs": facts,
    }
    lines = {"sources": texts, "hypotheses": outputs} if experiment.task.has_sources else {}
    return summary, {**lines, "references": references}


def score_pairs(architecture: Architecture, params: Any, vocabulary: Vocabularies, pairs: list[Pair]) -> list[float]:
    """Log p(target | source) of each pair in nats, EOS counted."""
    model: Any = architecture.build()
    sources, targets = vocabulary.encode(pairs)
    check_lengths(architecture, [*sources, *targets], "the input")
    found = [0.0] * len(pairs)
    for chosen, batch in evaluation_batches(sources, targets, BATCH_TOKENS):
        for i, value in zip(chosen, jax.device_get(forced_scores(model, params, batch)), strict=False):
            found[i] = float(value)
    return found
