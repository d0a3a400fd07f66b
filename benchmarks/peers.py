"""t2t beside its peers: the same sizes, sentences and budget, each engine in a process of its own, one after the other.

    python -m venv peers
    peers/bin/pip install ctranslate2 torch transformers sentencepiece joeynmt importlib_metadata jax flax optax
    git clone https://github.com/google/flax
    python benchmarks/peers.py decode RUN --peers peers/bin/python --name decode_small
    python benchmarks/peers.py train EXPERIMENT --peers peers/bin/python --flax flax/examples/wmt --name train_small

Every round asks each engine once, so that a machine whose speed drifts is as fast for one as for the other; a ratio is
of two answers of one round. What was found is kept in benchmarks/results after each round, and BENCHMARKS.md is written
from all of it. A peer that fails is named, and the others go on.
Knobs of the experiment may follow `train`, as for `t2t train`.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import commands
import numpy as np
from page import commit, keep, machine, page

from t2t import bench, checkpoint, metrics, run, storage
from t2t.data.pipeline import TrainingBatches, everything
from t2t.data.pipeline import pairs as in_batch
from t2t.data.task import Pair
from t2t.experiment import Experiment, differences, get, override
from t2t.interop import ctranslate2, hugging_face
from t2t.metrics import bleu
from t2t.sharding import make_mesh

HERE = Path(__file__).parent
BEAM = 4
ROWS = 32  # sentences that a peer decodes at a time: of 32 and 64 the faster on two cores for CTranslate2
MANY = 300  # at most so many of our batches are taken apart for those of the peers
Answer = dict[str, Any]
OURS, MARIAN = "t2t", "Hugging Face Marian"


class Comparison(NamedTuple):
    """What is asked of whom."""

    what: str
    unit: str  # what is counted: sentences or tokens
    experiment: Experiment
    how: list[str]  # commands that lead to it
    engines: dict[str, list[str]]  # the command of each; the first is OURS
    bleu: Callable[[list[list[str]]], metrics.Score] | None = None  # of outputs, where there are any


def decoding(folder: Path, options: argparse.Namespace) -> Comparison:
    """Test sentences of a run by its own weights; what the engines read is written to `folder`."""
    where, experiment, vocabulary = run.load(storage.folder(options.subject))
    params, _ = checkpoint.load_params(where, experiment)
    pairs = [pair for _, pair in zip(range(options.sentences), experiment.task.pairs("test"), strict=False)]
    ids = vocabulary.encode(pairs)[0]
    sources, weights = folder / "sources.json", folder / "ctranslate2"
    sources.write_text(json.dumps({"ids": ids, "pieces": [vocabulary.source.pieces(each[:-1]) for each in ids]}))
    ctranslate2.write(experiment.model, params, vocabulary, weights)
    search = BEAM, options.extra_length
    ours = _words(sys.executable, HERE / "decode_t2t.py", options.subject, sources, *search)
    engines = {
        OURS: [*ours, "float32", "exact"],
        f"{OURS} early stopping": [*ours, "float32", "early"],  # as CTranslate2 stops
        f"{OURS} bfloat16": [*ours, "bfloat16", "exact"],
        f"{OURS} bfloat16 early stopping": [*ours, "bfloat16", "early"],
    }
    for kind in ("float32", "int8"):
        script = HERE / "decode_ctranslate2.py"
        words = _words(options.peers, script, weights, sources, *search, kind, ROWS, options.threads)
        engines[f"CTranslate2 {kind}"] = words
    if among(MARIAN, options.engines):  # it has no place for pre-LN
        hugging_face.write(experiment, params, vocabulary, folder / "marian")
    script = HERE / "decode_transformers.py"
    engines[MARIAN] = _words(options.peers, script, folder / "marian", sources, *search, ROWS, options.threads)
    trained = f"t2t train {_changed(experiment)} # step {max(checkpoint.all_steps(where.checkpoints))}"
    what = (
        f"decode, beam {BEAM}, {len(ids):,} sentences, outputs of up to {options.extra_length} tokens more than these"
    )
    return Comparison(what, "sentences", experiment, [trained, _command(options)], engines, bleu_of(experiment, pairs))


def bleu_of(experiment: Experiment, pairs: list[Pair]) -> Callable[[list[list[str]]], metrics.Score]:
    """sacreBLEU's score of outputs that come in pieces, against the targets of `pairs`."""

    def score(outputs: list[list[str]]) -> metrics.Score:
        lines = ["".join(pieces).replace("▁", " ").strip() for pieces in outputs]
        task: Any = experiment.task
        return bleu.scores(lines, [pair.target for pair in pairs], task.target, task.source)["sacrebleu"]

    return score


def training(folder: Path, options: argparse.Namespace) -> Comparison:
    """Steps of an experiment; the peers' batches are written to `folder`."""
    knobs = commands.knobs(options.knobs)
    experiment = override(get(options.subject), knobs)
    # Whole batches: peers compute them at once, whatever --mesh.tokens_per_device has ours do.
    batches = bench.training_batches(experiment, make_mesh(experiment.mesh), print).shared(everything)
    model: Any = experiment.model
    sizes = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "d_k", "p_drop", "dtype")
    work = {
        "experiment": options.subject,
        "knobs": knobs,
        "steps": options.steps,
        **{name: getattr(model, name) for name in sizes},
        "padded": padded(batches, experiment.batching.tokens, options.steps),
        "packed": packed(batches, options.steps),
    }
    file = folder / "work.json"
    file.write_text(json.dumps(work))
    engines = {OURS: _words(sys.executable, HERE / "train_t2t.py", file)}
    for kind in ("eager", "compiled"):
        engines[f"PyTorch {kind}"] = _words(options.peers, HERE / "train_torch.py", file, kind, options.threads)
    if options.flax:
        engines["flax examples/wmt"] = _words(options.peers, HERE / "train_flax.py", file, Path(options.flax).resolve())
    engines["Joey NMT"] = _words(options.peers, HERE / "train_joeynmt.py", file, options.threads)
    what = f"train, {options.steps} steps of {experiment.batching.tokens:,} tokens a side, {model.dtype}"
    return Comparison(what, "tokens", experiment, [_command(options)], engines)


def padded(batches: TrainingBatches, tokens: int, steps: int) -> list[tuple[list, list]]:
    """Batches of pairs of like length, each padded to its longest: what one has without packing (section 5.1).

    A batch has at most `tokens` positions a side. Those of `steps` are drawn at random from those of an epoch. Of the
    orders that pairs are put in by their lengths it is the one that pads least.
    """
    drawn = np.random.default_rng(0)
    many = min(len(batches.epochs), MANY)
    pairs = [pair for step in range(many) for pair in in_batch(batches[step])]
    orders = [in_batches(sorted(pairs, key=key), tokens) for key in (_by_target, _by_longer)]
    found = min(([_padded(batch) for batch in order] for order in orders), key=_positions)
    return [found[i] for i in drawn.permutation(len(found))[:steps]]


def _by_target(pair: tuple[list, list]) -> tuple[int, int]:
    return len(pair[1]), len(pair[0])


def _by_longer(pair: tuple[list, list]) -> tuple[int, int]:
    return max(map(len, pair)), len(pair[1])


def in_batches(pairs: list[tuple[list, list]], tokens: int) -> list[list[tuple[list, list]]]:
    """The pairs in their order, as many a batch as have at most `tokens` positions when padded to its longest side."""
    found, batch, longest = [], [], 0
    for pair in pairs:
        longest = max(longest, *map(len, pair))
        if batch and longest * (len(batch) + 1) > tokens:
            found.append(batch)
            batch, longest = [], max(map(len, pair))
        batch.append(pair)
    return [*found, batch]


def _positions(batches: list[tuple[list, list]]) -> int:
    return sum(len(side) * len(side[0]) for batch in batches for side in batch)


def _padded(pairs: list[tuple[list[int], list[int]]]) -> tuple[list, list]:
    sides = list(zip(*pairs, strict=True))
    widths = [max(map(len, side)) for side in sides]
    first, second = ([row + [0] * (w - len(row)) for row in side] for side, w in zip(sides, widths, strict=True))
    return first, second


def packed(batches: TrainingBatches, steps: int) -> list[dict[str, list]]:
    """t2t's own batches, several sentences a row, under the names that flax's examples/wmt has for them."""
    found = []
    for batch in (batches[step] for step in range(steps)):
        sides = {"inputs": batch.source, "targets": batch.target}
        made = {name: side.tokens.tolist() for name, side in sides.items()}
        made |= {f"{name}_position": side.positions.tolist() for name, side in sides.items()}
        found.append(made | {f"{name}_segmentation": side.segments.tolist() for name, side in sides.items()})
    return found


def _words(*words: Any) -> list[str]:
    return [str(word) for word in words]


def _command(options: argparse.Namespace) -> str:
    count = (
        f"--sentences {options.sentences} --extra_length {options.extra_length}"
        if options.what == "decode"
        else f"--steps {options.steps}"
    )
    flax = " --flax flax/examples/wmt" if options.flax else ""
    return " ".join(
        [
            f"python benchmarks/peers.py {options.what} {Path(options.subject).name} --peers peers/bin/python{flax}",
            f"{count} --rounds {options.rounds} --threads {options.threads} --name {options.name}",
            *([f'--engines "{options.engines}"'] if options.engines else []),
            *options.knobs,
        ]
    )


def _changed(experiment: Experiment) -> str:
    changed = differences(get(experiment.name), experiment)
    return " ".join([experiment.name, *(f"--{name} {value}" for name, (_, value) in changed.items())])


def among(name: str, names: str) -> bool:
    """Whether an engine is one of those named, with commas between; without names, all are."""
    return not names or name in names.split(",")


def chosen(engines: dict[str, list[str]], names: str) -> dict[str, list[str]]:
    """Ours and those named: all at once may be more than the memory holds.

    Raises:
        SystemExit: a name is none of theirs.
    """
    if unknown := [name for name in filter(None, names.split(",")) if name not in engines]:
        raise SystemExit(f"--engines: no {unknown[0]!r}; there are {', '.join(engines)}")
    return {name: words for name, words in engines.items() if name == OURS or among(name, names)}


def measure(commands: dict[str, list[str]], rounds: int) -> Iterator[dict[str, tuple[Answer, list[Answer]]]]:
    """After each round, of each engine that has not failed what it said of itself and what it answered so far.

    Raises:
        SystemExit: ours failed.
    """
    processes, found = {}, {}
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[name] = stack.enter_context(process)  # at the end nothing more is asked, and so it ends
            if (about := _answer(name, process)) is not None:
                found[name] = about, []
        for _ in range(rounds):
            for name in [*found]:
                with contextlib.suppress(BrokenPipeError):
                    print("go", file=processes[name].stdin, flush=True)
                if (answer := _answer(name, processes[name])) is not None:
                    found[name][1].append(answer)
                else:
                    del found[name]
            yield found


def _answer(name: str, process: Any) -> Answer | None:
    """A line of an engine's; None: it failed, which is said."""
    if line := process.stdout.readline():
        return json.loads(line)
    failed = f"{name} ended with {process.wait()}"
    if name == OURS:
        raise SystemExit(failed)
    print(f"{failed}; it is left out", file=sys.stderr)
    return None


def result(
    asked: Comparison, options: argparse.Namespace, engines: dict[str, tuple[Answer, list[Answer]]]
) -> dict[str, Any]:
    """What is kept: rates and ratios with their spread, and all that it takes to ask again."""
    rates = {name: [each[asked.unit] / each["seconds"] for each in found] for name, (_, found) in engines.items()}
    model: Any = asked.experiment.model
    layers = f"{model.num_layers}+{model.num_layers} {'pre-LN ' * (model.norm == 'pre')}layers"
    return {
        "what": asked.what,
        "unit": asked.unit,
        "model": f"{layers}, d_model {model.d_model}, {model.vocab_size:,} pieces",
        "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": machine(options.threads),
        "commit": commit(),
        "how": asked.how,
        "jax": importlib.metadata.version("jax"),
        "engines": {
            name: {
                **about,
                "tokens": found[0]["tokens"],
                **{name: found[-1][name] for name in ("programs", "memory") if name in found[-1]},
                "rate": bench.spread(rates[name])._asdict(),
                "t2t_over_it": bench.spread([a / b for a, b in zip(rates[OURS], rates[name], strict=True)])._asdict(),
                **({"bleu": asked.bleu(found[-1]["pieces"])._asdict()} if asked.bleu else {}),
            }
            for name, (about, found) in engines.items()
        },
        **_of_the_machine(engines[OURS][1]),
    }


def _of_the_machine(answers: list[dict[str, float]]) -> dict[str, Any]:
    """The part of the machine's matrix rate that our steps reached, and the part of positions that is padding."""
    if "flops" not in answers[0]:
        return {}
    reached = bench.spread([each["flops"] / each["seconds"] / each["matrix_rate"] for each in answers])
    tokens, positions = (sum(each[name] for each in answers) for name in ("tokens", "positions"))
    rate = bench.spread([each["matrix_rate"] for each in answers])
    return {"utilisation": reached._asdict(), "matrix_rate": rate._asdict(), "padding": 1 - tokens / positions}


def main() -> None:
    """Measures, keeps what was found, and writes BENCHMARKS.md anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "train"])
    parser.add_argument("subject", help="decode: a run folder, its weights and test sentences; train: an experiment")
    parser.add_argument("--peers", required=True, help="the Python that has the peers installed")
    parser.add_argument("--flax", default="", help="the folder examples/wmt of flax's repository")
    parser.add_argument("--engines", default="", help="which of them beside t2t, with commas between; without, all")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument(
        "--extra_length", type=int, default=50, help="tokens that an output may have more than its source"
    )
    parser.add_argument("--steps", type=int, default=8, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--name", required=True, help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    options, options.knobs = parser.parse_known_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is for all of them
    with tempfile.TemporaryDirectory() as folder:
        asked = (decoding if options.what == "decode" else training)(Path(folder), options)
        asked = asked._replace(engines=chosen(asked.engines, options.engines))
        for answers in measure(asked.engines, options.rounds):
            found = result(asked, options, answers)
            keep(options.name, found, options.results)
    print(page([found]))


if __name__ == "__main__":
    main()
