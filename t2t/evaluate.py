"""A split under a model: perplexity by teacher forcing, then outputs, then scores."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2t.batch import Batch
from t2t.data.batching import evaluation_batches
from t2t.data.task import Pair, Task
from t2t.data.vocabulary import Vocabulary
from t2t.decode import decode, forced_scores
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.loss import Sums, cross_entropy
from t2t.run import Run, write_evaluation

Say = Callable[[str], None]
BATCH_TOKENS = 4096  # most target positions of an evaluation batch: the logits of one lie in memory whole


@functools.partial(jax.jit, static_argnames="model")
def batch_sums(model: Any, params: Any, batch: Batch) -> Sums:
    """The sums of `loss.cross_entropy`, without smoothing, over a batch."""
    logits = model.apply(params, batch.source, batch.target)
    return cross_entropy(logits, batch.target.tokens, batch.target.segments, 0.0)


def read_split(task: Task, split: str) -> list[Pair]:
    """All pairs of a split; a line without text on either side stays in its place."""
    pairs = list(task.pairs(split))
    if not pairs:
        raise UserError(f"the {split} split is empty")
    return pairs


def split_batches(pairs: list[Pair], vocabulary: Vocabulary, tokens: int) -> list[Batch]:
    """A split as batches of few shapes, nothing left out."""
    sources = vocabulary.encode([p.source for p in pairs])
    targets = vocabulary.encode([p.target for p in pairs])
    return [batch for _, batch in evaluation_batches(sources, targets, tokens)]


def perplexity(model: Any, params: Any, batches: list[Batch]) -> dict[str, float]:
    """Per token, EOS counted, without smoothing: {"loss" in nats, "perplexity", "accuracy", "tokens"}."""
    total: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(batch_sums(model, params, batch)).items():
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
    run: Run, experiment: Experiment, vocabulary: Vocabulary, params: Any, steps: list[int], split: str, say: Say
) -> dict[str, Any]:
    """Perplexity, outputs and scores of a split, written below evaluations/ and returned.

    `steps` are those of the checkpoints that `params` is the average of.
    """
    model = experiment.model.build()
    pairs = read_split(experiment.task, split)
    say(f"evaluating {len(pairs)} {split} pairs: perplexity")
    found = perplexity(model, params, split_batches(pairs, vocabulary, BATCH_TOKENS))
    how = experiment.decoding
    say(f"evaluating {len(pairs)} {split} pairs: decoding with beam {how.beam}")
    hypotheses = [""] * len(pairs)
    for i, best in decode(model, params, vocabulary.encode([p.source for p in pairs]), how):
        hypotheses[i] = vocabulary.decode(best[0].tokens)
    references = [p.target for p in pairs]
    scores = experiment.task.score(hypotheses, references)
    summary = {
        "split": split,
        "perplexity": found["perplexity"],
        "scores": {name: score._asdict() for name, score in scores.items()},
        "tokens": found["tokens"],
        "checkpoints": steps,
        "beam": how.beam,
        "alpha": how.alpha,
    }
    texts = {"sources": [p.source for p in pairs], "hypotheses": hypotheses, "references": references}
    name = f"{split}-step{steps[-1]}-average{len(steps)}-beam{how.beam}-alpha{how.alpha:g}"
    folder = write_evaluation(run, name, texts, summary)
    return {**summary, "folder": str(folder)}


def samples(folder: Path, count: int) -> list[tuple[str, str, str]]:
    """(source, hypothesis, reference) of `count` sentences spread over an evaluation."""
    kinds = ("sources", "hypotheses", "references")
    texts = [(folder / f"{kind}.txt").read_text().splitlines() for kind in kinds]
    chosen = np.linspace(0, len(texts[0]) - 1, count).astype(int)
    return [(texts[0][i], texts[1][i], texts[2][i]) for i in chosen]


def score_pairs(model: Any, params: Any, vocabulary: Vocabulary, pairs: list[Pair]) -> list[float]:
    """Log p(target | source) of each pair in nats, EOS counted."""
    sources = vocabulary.encode([p.source for p in pairs])
    targets = vocabulary.encode([p.target for p in pairs])
    found = [0.0] * len(pairs)
    for chosen, batch in evaluation_batches(sources, targets, BATCH_TOKENS):
        for i, value in zip(chosen, jax.device_get(forced_scores(model, params, batch)), strict=False):
            found[i] = float(value)
    return found
