"""Training with what makes it fast beside the same without: dev perplexity by step, on Multi30k.

    python benchmarks/curves.py --runs FOLDER --name curves --train_steps 800

Fast is what `t2t train` does: dropout's bits are a hash of places, and logits are computed a slice at a time. Then the
same batches without, dropout's bits from `jax.random`; and the fast way from another seed, since seeds differ too. Run
folders that are there are gone on with. What was found is kept in benchmarks/results and BENCHMARKS.md is written from
it. Knobs may follow, as for `t2t train`.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import commands
import jax
from page import keep, origin

from t2t import memory
from t2t.experiment import get, override
from t2t.models import dropout
from t2t.run import read_metrics
from t2t.train import train

EXPERIMENT = "multi30k_ende"
WHOLE = {"mesh.logits_per_device": 10**9, "mesh.tokens_per_device": 10**9}  # one part, and one slice of it
SLICED = {"mesh.logits_per_device": 256}  # a quarter of a batch of 1,024 tokens
WAYS: dict[str, dict[str, Any]] = {
    "fast": SLICED,
    "plain step": WHOLE,
    "fast, another seed": {**SLICED, "seed": 1},
}


def _plain_bits(key: jax.Array, shape: tuple[int, ...], first_row: jax.Array | int = 0) -> jax.Array:
    """JAX's own random bits, in the place of `dropout.random_bits`; a batch has to be computed in one part."""
    assert isinstance(first_row, int), "a part of a batch"
    return jax.random.bits(key, shape)


@contextlib.contextmanager
def dropout_of(way: str) -> Iterator[None]:
    """Inside, dropout is as `way` has it."""
    with mock.patch.object(dropout, "random_bits", _plain_bits) if "plain" in way else contextlib.nullcontext():
        yield


def curve(way: str, knobs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Dev perplexity by step, and the pace, of a run that is trained as far as it was not."""
    experiment = override(get(EXPERIMENT), {**knobs, **WAYS[way]})
    with dropout_of(way):
        rows = read_metrics(train(experiment, folder, print, lambda *_: None))
    trained = [row for row in rows if row["split"] == "train"]
    tokens = sum(row["tokens"] for row in trained)
    return {
        "way": way,
        "tokens": tokens,
        "rate": tokens / sum(row["seconds"] for row in trained),
        "perplexity": {row["step"]: row["perplexity"] for row in rows if row["split"] == "dev"},
    }


def main() -> None:
    """Trains each way, keeps what was found, and writes BENCHMARKS.md anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders lie, or will")
    parser.add_argument("--name", default="curves", help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    parser.add_argument("--only", choices=[*WAYS], help="train this one and write nothing")
    options, words = parser.parse_known_args()
    knobs = commands.knobs(words)
    memory.one_heap()
    found = []
    for way in [options.only] if options.only else WAYS:
        found.append(curve(way, knobs, options.runs / way.replace(", ", "-").replace(" ", "-")))
        print(json.dumps(found[-1]), flush=True)
    if not options.only:
        how = " ".join([f"python benchmarks/curves.py --runs FOLDER --name {options.name}", *words])
        result = {"kind": "curves", "experiment": EXPERIMENT, **origin([how]), "runs": found}
        keep(options.name, result, options.results)


if __name__ == "__main__":
    main()
