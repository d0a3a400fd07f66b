"""t2t beside its peers: the same weights and sentences, each engine in a process of its own, one after the other.

    python -m venv peers && peers/bin/pip install ctranslate2
    python benchmarks/peers.py decode RUN --peers peers/bin/python [--sentences 1000] [--rounds 5] [--threads 2]

Every round asks each engine once, so that a machine whose speed drifts is as fast for one as for the other; a ratio is
of two answers of one round. What was found is kept in benchmarks/results, and BENCHMARKS.md is written from all of it.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from t2t import bench, checkpoint, run, storage
from t2t.experiment import Experiment, differences, get
from t2t.interop import ctranslate2

HERE = Path(__file__).parent
BEAM = 4
ROWS = 32  # sentences CTranslate2 decodes at a time: of 32 and 64 the faster on two cores


def contenders(folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each engine; what they read is written to `folder`."""
    where, experiment, vocabulary = run.load(storage.folder(options.run))
    params, _ = checkpoint.load_params(where.checkpoints, experiment)
    pairs = [pair for _, pair in zip(range(options.sentences), experiment.task.pairs("test"), strict=False)]
    ids = vocabulary.encode(pairs)[0]
    sources, weights = folder / "sources.json", folder / "ctranslate2"
    sources.write_text(json.dumps({"ids": ids, "pieces": [vocabulary.source.pieces(each[:-1]) for each in ids]}))
    ctranslate2.write(experiment.model, params, vocabulary, weights)
    found = {"t2t float32": [sys.executable, str(HERE / "decode_t2t.py"), options.run, str(sources), str(BEAM)]}
    for kind in ("float32", "int8"):
        words = [options.peers, HERE / "decode_ctranslate2.py", weights, sources, BEAM, kind, ROWS, options.threads]
        found[f"CTranslate2 {kind}"] = [str(word) for word in words]
    return found


def measure(commands: dict[str, list[str]], rounds: int) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """What each engine said of itself, and what it answered in each round."""
    processes, about, answers = {}, {}, {name: [] for name in commands}
    for name, command in commands.items():
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        about[name] = _answer(name, processes[name])
    for _ in range(rounds):
        for name, process in processes.items():
            print("go", file=process.stdin, flush=True)
            answers[name].append(_answer(name, process))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return about, answers


def _answer(name: str, process: Any) -> dict[str, float]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended with {process.wait()}")
    return json.loads(line)


def result(options: argparse.Namespace, about: Any, answers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What is kept: rates and ratios with their spread, and all that it takes to ask again."""
    rates = {name: [each["sentences"] / each["seconds"] for each in found] for name, found in answers.items()}
    ours = rates["t2t float32"]
    where, experiment, _ = run.load(storage.folder(options.run))
    model: Any = experiment.model
    return {
        "what": f"{options.what}, beam {BEAM}, {int(answers['t2t float32'][0]['sentences']):,} sentences",
        "model": f"{model.num_layers}+{model.num_layers} layers, d_model {model.d_model}, {model.vocab_size:,} pieces",
        "trained": _training(experiment, where.checkpoints),
        "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": f"{_processor()}, {options.threads} threads; Python {platform.python_version()}",
        "commit": _commit(),
        "command": f"python benchmarks/peers.py {options.what} {Path(options.run).name} --peers PEERS/bin/python "
        f"--sentences {options.sentences} --rounds {options.rounds} --threads {options.threads} --name {options.name}",
        "versions": f"jax {importlib.metadata.version('jax')}, ctranslate2 {about['CTranslate2 float32']['version']}",
        "engines": {
            name: {
                "first_seconds": about[name]["first_seconds"],
                "tokens": found[0]["tokens"],
                "sentences_per_second": bench.spread(rates[name])._asdict(),
                "t2t_over_it": bench.spread([a / b for a, b in zip(ours, rates[name], strict=True)])._asdict(),
            }
            for name, found in answers.items()
        },
    }


def _training(experiment: Experiment, checkpoints: Any) -> str:
    """The command that trained the weights, and how far."""
    changed = differences(get(experiment.name), experiment)
    words = " ".join(f"--{name} {value}" for name, (_, value) in changed.items())
    return f"t2t train {experiment.name} {words} # step {max(checkpoint.all_steps(checkpoints))}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return said.stdout.strip() or "not known"


# ------------------------------------------------------------------------------ BENCHMARKS.md

HEAD = """# Benchmarks

Written by `benchmarks/peers.py` from `benchmarks/results`; not by hand. Rates and ratios are medians, with quartiles
in brackets. `first` is the first time, with what is compiled or loaded then; the rates leave it out.
"""


def page(results: list[dict[str, Any]]) -> str:
    """BENCHMARKS.md."""
    return "\n".join([HEAD, *(_section(each) for each in results)])


def _section(found: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {_words(engine['sentences_per_second'], 1)} | {_words(engine['t2t_over_it'], 2)} "
        f"| {engine['tokens']:,} | {engine['first_seconds']:.0f} s |"
        for name, engine in found["engines"].items()
    ]
    return "\n".join(
        [
            f"## {found['what']}: {found['model']}",
            "",
            "| engine | sentences/s | t2t is so many times as fast | output tokens | first |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"{found['when']}, {found['machine']}; {found['versions']}; commit {found['commit']}.",
            "How the weights were trained, and what was run:",
            "",
            "```text",
            found["trained"],
            found["command"],
            "```",
            "",
        ]
    )


def _words(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f} to {spread['high']:.{digits}f})"


def main() -> None:
    """Measures, keeps what was found, and writes BENCHMARKS.md anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode"])
    parser.add_argument("run", help="a run folder: its weights and its test sentences")
    parser.add_argument("--peers", required=True, help="the Python that has the peers installed")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = result(options, *measure(contenders(Path(folder), options), options.rounds))
    kept = HERE / "results"
    kept.mkdir(exist_ok=True)
    (kept / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    (HERE.parent / "BENCHMARKS.md").write_text(page(results))
    print(page([found]))


if __name__ == "__main__":
    main()
