"""Trained on rows of 64 tokens, read on rows of 256: what each kind of position makes of lengths that it never saw.

    python benchmarks/length_extrapolation.py --steps 1500 --name lengths

The quickstart's model and sentences, joined until a side of a row is full: nearly every position holds a token, and the
nth sentence of a source is translated by the nth of its target. Each kind of position starts from the same seed and
sees the same batches. Perplexity and accuracy are per target token, on dev sentences joined likewise: of whole rows,
and of their last quarter. What was found is kept in benchmarks/results and BENCHMARKS.md is written from it.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from page import keep, origin

from t2t.batch import Batch
from t2t.data.batching import fill
from t2t.data.prepare import Sizes, prepare
from t2t.evaluate import averages
from t2t.experiment import Experiment, get, override
from t2t.loss import Sums, cross_entropy
from t2t.sharding import unboxed
from t2t.train import init_state, train_step

KINDS = ("sinusoid", "learned", "rope")
TRAINED = 64  # tokens of a row, on the longer side
READ = (64, 128, 256)
ROOM, BATCHES = 2048, 12  # tokens a side of a batch that is read, and how many batches are
SEED = 0

Pairs = list[tuple[list[int], list[int]]]


def joined(pairs: Pairs, length: int, rng: np.random.Generator) -> Iterator[tuple[list[int], list[int]]]:
    """Rows without end: pairs drawn one after the other, until the next would make a side longer than `length`."""
    source: list[int] = []
    target: list[int] = []
    while True:
        more = pairs[rng.integers(len(pairs))]
        if max(len(source) + len(more[0]), len(target) + len(more[1])) > length:
            yield source, target
            source, target = [], []
        source, target = source + more[0], target + more[1]


def batches(pairs: Pairs, length: int, tokens: int, seed: int) -> Iterator[Batch]:
    """Batches without end, of `tokens` a side."""
    rows, drawn = tokens // length, joined(pairs, length, np.random.default_rng(seed))
    while True:
        sources, targets = zip(*itertools.islice(drawn, rows), strict=True)
        yield Batch(fill(sources, rows, length), fill(targets, rows, length))


def trained(experiment: Experiment, pairs: Pairs) -> tuple[Any, float]:
    """The weights after all steps, and the seconds that these took."""
    state = unboxed(init_state(experiment, jax.random.key(SEED)))
    step = jax.jit(functools.partial(train_step, experiment), donate_argnums=0)
    drawn = batches(pairs, TRAINED, experiment.batching.tokens, SEED)
    begin = time.monotonic()
    for number, batch in enumerate(itertools.islice(drawn, experiment.train_steps), 1):
        state, sums = step(state, batch)
        if number % 100 == 0:
            loss = float(sums["loss"] / sums["tokens"])
            print(f"{experiment.model.positions}: step {number}, loss {loss:.3f}", file=sys.stderr, flush=True)
    jax.block_until_ready(state)
    return state.params, time.monotonic() - begin


@functools.partial(jax.jit, static_argnums=0)
def sums(model: Any, params: Any, batch: Batch) -> tuple[Sums, Sums]:
    """Those of `cross_entropy` over whole rows, and over their last quarter."""
    logits, (tokens, segments, _) = model.apply(params, batch.source, batch.target), batch.target
    length = tokens.shape[1]
    late = jnp.where(jnp.arange(length) >= length * 3 // 4, segments, 0)
    return tuple(cross_entropy(logits, tokens, counted, 0.0) for counted in (segments, late))


def read(model: Any, params: Any, pairs: Pairs, length: int) -> dict[str, float]:
    """What the model makes of dev sentences joined to rows of `length`."""
    total: Any = None
    for batch in itertools.islice(batches(pairs, length, ROOM, SEED + 1), BATCHES):
        found = jax.device_get(sums(model, params, batch))
        total = jax.tree.map(np.add, total, found) if total else found
    whole, last = ({name: float(value) for name, value in averages(part).items()} for part in total)
    return {
        "tokens": float(total[0]["tokens"]),
        "perplexity": whole["perplexity"],
        "accuracy": whole["accuracy"],
        "perplexity_of_last_quarter": last["perplexity"],
        "accuracy_of_last_quarter": last["accuracy"],
    }


def main() -> None:
    """Trains and reads each kind, keeps what was found, and writes BENCHMARKS.md anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=1024, help="of a batch, on each side")
    parser.add_argument("--name", default="lengths", help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    options = parser.parse_args()
    changes = {"train_steps": options.steps, "batching.tokens": options.tokens, "model.max_length": max(READ)}
    base = override(get("quickstart"), changes)
    prepared = prepare(base.task, Sizes(base.model.vocab_size), lambda line: print(line, file=sys.stderr))
    splits = {
        name: list(zip(*prepared.vocabulary.encode(list(base.task.pairs(name))), strict=True))
        for name in ("train", "dev")
    }
    found: dict[str, Any] = {}
    for kind in KINDS:
        experiment = override(base, {"model.positions": kind})
        params, seconds = trained(experiment, splits["train"])
        model = experiment.model.build()
        found[kind] = {str(length): read(model, params, splits["dev"], length) for length in READ}
        found[kind]["training_seconds"] = seconds
        print(kind, json.dumps(found[kind]), file=sys.stderr, flush=True)
    words = f"--steps {options.steps} --tokens {options.tokens} --name {options.name}"
    result = {
        "kind": "lengths",
        "trained": TRAINED,
        "steps": options.steps,
        "tokens": options.tokens,
        **origin([f"python benchmarks/length_extrapolation.py {words}"]),
        "read": found,
    }
    keep(options.name, result, options.results)


if __name__ == "__main__":
    main()
