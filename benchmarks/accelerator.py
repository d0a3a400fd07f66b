"""All that is to be measured on a GPU or TPU, by one command; each answer is a file in FOLDER.

    python benchmarks/accelerator.py FOLDER --prepare                          # on any machine, and FOLDER taken along
    python benchmarks/accelerator.py FOLDER [--only train_base,train_big] [--seconds 600] [--peers PYTHON] [knobs]

The paper's base and big models at its batch of 25,000 tokens a side, on synthetic pairs of about the length of news:
speed depends on lengths, not on what is said. Rows have one shape, one program to compile, and all of a batch is
computed at once. NAME.json has what was found and NAME.log what was said; a measurement that fails leaves its log and
the others go on, and none begins after --seconds. Knobs, as for `t2t train`, are passed to all of them.

`profile_base` leaves a trace, for TensorBoard or Perfetto, and the compiled program beside it. `cost_base` and
`cost_big` are what `t2t cost` makes of the speed and the power that `train_base` and `train_big` found, for one device
and for eight.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import commands
from commands import words
from scale import write_pairs

HERE = Path(__file__).parent
BIG = {"model.d_model": 1024, "model.d_ff": 4096, "model.num_heads": 16, "model.p_drop": 0.3}
# One program, all of a batch at a time, no loop over layers.
WHOLE = {
    "batching.max_length": 64,
    "batching.shapes": 1,
    "mesh.tokens_per_device": 32_768,
    "mesh.logits_per_device": 32_768,
    "model.unroll": 6,
}
FUSED, SCANNED = {"model.attention": "fused"}, {"model.unroll": 1}
PARTS = {"mesh.tokens_per_device": 4096, "mesh.logits_per_device": 4096}
ROWS = {"decoding.rows": 512}
DECODED = 3000  # sentences, as many as newstest2013 has
TRAINED = {"train_steps": 1000, "optimizer.warmup_steps": 500, "evaluate_every": 1000, "checkpoint_every": 1000}
PROFILED = 3  # steps in a trace


def measurements(options: argparse.Namespace, data: dict[str, Any]) -> dict[str, list[str]]:
    """The words after `python` of each, by name, in the order of what is wanted most."""
    number, run = ["--number", str(options.steps), "--json"], str(options.folder / "run")

    def own_base(*changes: dict[str, Any]) -> list[str]:
        return ["own_base", *words(data, WHOLE, *changes, options.knobs)]

    def train(*changes: dict[str, Any]) -> list[str]:
        return ["-m", "t2t", "bench", "train", *own_base(*changes), *number]

    def peers(name: str, *changes: dict[str, Any]) -> list[str]:
        which = ["--engines", "PyTorch eager,PyTorch compiled", "--rounds", "3", "--name", name]
        where = ["--peers", options.peers, "--results", str(options.folder)]
        return [str(HERE / "peers.py"), "train", *own_base(*changes), *which, *where]

    found = {
        "train_base": train(FUSED),
        "train_big": train(BIG, FUSED),
        "peers_base": peers("peers_base", FUSED),
        "peers_big": peers("peers_big", BIG, FUSED),
        "run": ["-m", "t2t", "train", *own_base(FUSED, TRAINED, ROWS), "--run", run],
        "decode_base": [
            *["-m", "t2t", "bench", "decode", *own_base(FUSED, ROWS)],
            *["--run", run, "--number", str(DECODED), "--json"],
        ],
        "profile_base": [str(HERE / "accelerator.py"), str(options.folder), "--profile", *own_base(FUSED)[1:]],
        "train_base_dense": train(),
        "train_big_dense": train(BIG),
        "train_base_scanned": train(FUSED, SCANNED),
        "train_base_in_parts": train(PARTS),
        "input": ["-m", "t2t", "bench", "input", *own_base(), *number],
    }
    return {name: command for name, command in found.items() if options.peers or not name.startswith("peers")}


class Power:
    """Watts that the first GPU draws while something runs, asked of nvidia-smi every half second if it is there."""

    def __init__(self) -> None:
        self._watts: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Power":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def most(self) -> float | None:
        """The median of the highest tenth of the answers, or None without any."""
        ordered = sorted(self._watts)
        return statistics.median(ordered[-max(1, len(ordered) // 10) :]) if ordered else None

    def _ask(self) -> None:
        command = ["nvidia-smi", "--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        while not self._done.wait(0.5):
            try:
                self._watts.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            except (OSError, subprocess.CalledProcessError, ValueError):
                return


def measured(name: str, command: list[str], folder: Path) -> int:
    """Runs one; its exit status."""
    with open(folder / f"{name}.log", "w") as log, Power() as power:
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True)
        log.write(done.stdout)
    if done.returncode == 0 and done.stdout.startswith("{"):
        found = {**json.loads(done.stdout), "watts": power.most(), "command": " ".join(command)}
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return done.returncode


def extrapolated(folder: Path, size: str) -> bool:
    """Hours and energy of the paper's run by the speed that was found, on one device and on eight; False: it failed."""
    found = json.loads((folder / f"train_{size}.json").read_text())
    rate = ["--rate", str(found["flops_per_second"] / 1e12)]
    watts = ["--watts", str(found["watts"])] if found["watts"] else []
    hours = {}
    for devices in (1, 8):
        command = ["-m", "t2t", "cost", f"ende_{size}", "--json", *rate, *watts, "--mesh.data", str(devices)]
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE)
        if done.returncode:
            return False
        hours[devices] = json.loads(done.stdout)
    (folder / f"cost_{size}.json").write_text(json.dumps(hours, indent=1) + "\n")
    return True


def profile(folder: Path, knobs: dict[str, str]) -> None:
    """A trace of a few steps, and the program that they run."""
    import jax

    from t2t import bench, memory, sharding
    from t2t.experiment import get, override

    experiment = override(get("own_base"), knobs)
    memory.one_heap()
    trainer = bench.Trainer(experiment, sharding.make_mesh(experiment.mesh), print)
    trainer.compile()
    trainer.warm()
    (program,) = trainer.compiled.values()
    (folder / "profile_base.hlo").write_text(program.as_text())
    with jax.profiler.trace(folder / "profile_base"):
        trainer.run(PROFILED)


def pairs(folder: Path, count: int) -> dict[str, Any]:
    """Writes the pairs, once; the knobs that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"task.corpus.{name}": (folder / f"{name}.tsv", n) for name, n in (("train", count), ("dev", DECODED))}
    for seed, (file, number) in enumerate(files.values()):
        if not file.is_file():
            write_pairs(file, number, seed)
    return {name: file for name, (file, _) in files.items()}


def main() -> None:
    """Measures one after the other."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true", help="only write and prepare the pairs")
    parser.add_argument("--profile", action="store_true", help="only trace some steps of what the knobs say")
    parser.add_argument("--only", default="", help="some of the measurements, with commas between; without, all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="none begins so long after the start")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--peers", default="", help="the Python that has PyTorch installed")
    options, knobs = parser.parse_known_args()
    options.knobs = commands.knobs(knobs)
    options.folder = options.folder.resolve()
    # Engines beside each other share the memory of one device.
    os.environ |= {"T2T_DATA": str(options.folder / "cache"), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if options.profile:
        profile(options.folder, options.knobs)
        return
    data = pairs(options.folder, options.pairs)
    if options.prepare:
        command = [sys.executable, "-m", "t2t", "prepare", "own_base", *words(data, WHOLE, options.knobs)]
        raise SystemExit(subprocess.run(command).returncode)
    found = measurements(options, data)
    wanted = options.only.split(",") if options.only else [*found]
    if unknown := [name for name in wanted if name not in found]:
        raise SystemExit(f"--only: no {unknown[0]!r}; there are {', '.join(found)}")
    for name in wanted:
        if time.monotonic() - begin > options.seconds:
            raise SystemExit(f"{name} and what follows it were not begun: {options.seconds:.0f} s are over")
        started = time.monotonic()
        status = measured(name, found[name], options.folder)
        print(f"{name}: exit status {status} after {time.monotonic() - started:.0f} s", flush=True)
        if status == 0 and name in ("train_base", "train_big"):
            size = name.removeprefix("train_")
            print(f"cost_{size}: {'found' if extrapolated(options.folder, size) else 'not found'}", flush=True)


if __name__ == "__main__":
    main()
