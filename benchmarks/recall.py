"""Long-range dependencies: each architecture of `experiments/recall.py` trained alike, its accuracy by distance.

    python benchmarks/recall.py --runs FOLDER --name recall

Accuracy is told after a third of the steps and after all. Run folders that are there are gone on with. What was found
is kept in benchmarks/results; docs/recall.svg is drawn and BENCHMARKS.md is written from it. Knobs of all experiments
may follow, as for `t2t train`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import commands
import jax
import numpy as np
from page import NAMES, keep, origin, recall_picture

from t2t import checkpoint, memory
from t2t.batch import EOS
from t2t.data.batching import evaluation_batches
from t2t.data.vocabulary import Vocabularies
from t2t.experiment import Experiment, get, override
from t2t.run import Run, read_metrics
from t2t.train import train

ROOT = Path(__file__).parent.parent
PICTURED = "recall"  # the result whose picture is the README's


def accuracy(experiment: Experiment, vocabulary: Vocabularies, params: Any) -> dict[int, float]:
    """By distance, the part of the test lines whose last word is the likeliest after all before it."""
    pairs = list(experiment.task.pairs("test"))
    sources, targets = vocabulary.encode(pairs, experiment.task.has_sources)
    model: Any = experiment.model.build()
    logits = jax.jit(lambda params, batch: model.apply(params, *batch))
    right: dict[int, list[bool]] = {}
    for chosen, batch in evaluation_batches(sources, targets, experiment.batching.tokens):
        best = np.asarray(logits(params, batch).argmax(-1))
        for row, pair in enumerate(chosen):
            *line, end = targets[pair]
            assert end == EOS
            right.setdefault(len(line) - 1, []).append(best[row, len(line) - 1] == line[-1])
    return {distance: float(np.mean(each)) for distance, each in sorted(right.items())}


def trained(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What a run of an experiment found, after all its steps; it is trained as far as it was not."""
    run = train(experiment, folder, print, lambda *_: None)
    params, steps = checkpoint.load_params(run, experiment)
    rows = [row for row in read_metrics(run) if row["split"] == "train"]
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params["params"].items()}
    return {
        "experiment": experiment.name,
        "parameters": sum(sizes.values()),
        "decoder": sizes["decoder"],
        "steps": steps[-1],
        "seconds": sum(row["seconds"] for row in rows),
        "accuracy": accuracy(experiment, Vocabularies.load(Run(folder).vocabulary), params),
    }


def main() -> None:
    """Trains all, keeps what was found, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders lie, or will")
    parser.add_argument("--name", default="recall", help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    options, words = parser.parse_known_args()
    knobs = commands.knobs(words)
    memory.one_heap()
    found = []
    for name in NAMES:
        experiment = override(get(name), knobs)
        for steps in (experiment.train_steps // 3, experiment.train_steps):
            found.append(trained(override(experiment, {"train_steps": steps}), options.runs / name))
            print(json.dumps(found[-1]), flush=True)
    task: Any = override(get("recall_transformer"), knobs).task
    how = " ".join([f"python benchmarks/recall.py --runs FOLDER --name {options.name}", *words])
    result = {
        "kind": "recall",
        "words": task.corpus.words,
        "trained": task.corpus.trained,
        **origin([how]),
        "runs": found,
    }
    keep(options.name, result, options.results)
    if options.name == PICTURED and not options.results:
        (ROOT / "docs" / "recall.svg").write_text(recall_picture(result))


if __name__ == "__main__":
    main()
