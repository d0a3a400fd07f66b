"""All that is to be measured on a GPU or TPU, by one command that may be cut off at any time.

    python benchmarks/accelerator.py FOLDER --prepare                          # on any machine, and FOLDER taken along
    python benchmarks/accelerator.py FOLDER [--only train_base,train_big] [--seconds 560] [--peers PYTHON] [knobs]
    python benchmarks/accelerator.py FOLDER --cost                             # afterwards, on any machine

The paper's base and big models at its batch of 25,000 tokens a side, on synthetic pairs of about the length of news:
speed depends on lengths, not on what is said. Rows have one shape, one program to compile, and all of a batch is
computed at once. Knobs, as for `t2t train`, are passed to all measurements; without --peers there are none of peers.

FOLDER/found.json has what each found, from its end on, and FOLDER/NAME.log what was said. One that fails, or is not
done when --seconds are over, is named there, and the others go on. `preflight` comes first: whether the platform's
kernel of attention computes what it should; if not, the others do without it. JAX goes on with a CPU where it cannot
use its GPU: JAX_PLATFORMS=cuda forbids that. `profile_base` leaves a trace, for TensorBoard or Perfetto, and the
compiled program.

--cost is what `t2t cost` makes of the speed and the power of `train_base` and `train_big`, and for eight devices of the
speed that one had on an eighth of the batch; what eight say to each other is not in it.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from commands import words
from scale import write_pairs

from t2t import bench, compilation, memory, sharding, storage
from t2t.errors import UserError
from t2t.experiment import Experiment, get, override
from t2t.models import attention

HERE = Path(__file__).parent
PIECES = 37_000  # of the paper's vocabulary
BIG = {"model.d_model": 1024, "model.d_ff": 4096, "model.num_heads": 16, "model.p_drop": 0.3}
# One program, all of a batch at a time, no loop over layers.
WHOLE = {
    "model.vocab_size": PIECES,
    "batching.max_length": 64,
    "batching.shapes": 1,
    "mesh.tokens_per_device": 32_768,
    "mesh.logits_per_device": 32_768,
    "model.unroll": 6,
}
FUSED, SCANNED = {"model.attention": "fused"}, {"model.unroll": 1}
IN_PARTS = {"mesh.tokens_per_device": 4096, "mesh.logits_per_device": 4096}
EIGHTH = {"batching.tokens": 3125}  # of the paper's batch
STEPS = {"base": 400, "big": 150}  # some ten seconds, so that the power is that of training
PEERS = {"base": 40, "big": 20}  # steps a round
DECODED = 3000  # sentences, as many as newstest2013 has
ROWS = (1024, 512, 2048)  # sentences that are searched for at a time
LIKE_SOURCES = {"decoding.extra_length": 2}  # random weights end no output
TRAINED = {"train_steps": 1000, "optimizer.warmup_steps": 500, "evaluate_every": 1000, "checkpoint_every": 1000}
PROFILED = 3  # steps in a trace
CLOSE = 0.05  # of values and gradients of one attention in bfloat16
LINES = 30  # of the log of what failed


def measurements(options: argparse.Namespace, data: dict[str, Any], fused: bool) -> dict[str, list[str]]:
    """The words after `python` of each, by name, in the order of what is wanted most."""
    run, kernel = str(options.folder / "run"), FUSED if fused else {}

    def own_base(*changes: dict[str, Any]) -> list[str]:
        return ["own_base", *words(data, WHOLE, *changes, options.knobs)]

    def part(name: str, *changes: dict[str, Any], steps: int = 0) -> list[str]:
        number = ["--steps", str(options.steps or steps)] if steps else []
        return [str(HERE / "accelerator.py"), str(options.folder), "--part", name, *number, *own_base(*changes)[1:]]

    def train(size: str, *changes: dict[str, Any]) -> list[str]:
        return part("train", BIG if size == "big" else {}, *changes, steps=STEPS[size])

    def peers(size: str) -> list[str]:
        which = ["--engines", "PyTorch compiled", "--steps", str(options.steps or PEERS[size]), "--rounds", "3"]
        where = ["--peers", options.peers, "--results", str(options.folder), "--name", f"peers_{size}"]
        return [str(HERE / "peers.py"), "train", *own_base(BIG if size == "big" else {}, kernel), *which, *where]

    def decode(*changes: dict[str, Any]) -> list[str]:
        return ["-m", "t2t", "bench", "decode", *own_base(*changes), "--number", str(DECODED), "--json"]

    with_peers = {f"peers_{size}": peers(size) for size in STEPS if options.peers}
    return {
        "train_base": train("base", kernel),
        "train_big": train("big", kernel),
        f"decode_base_{ROWS[0]}": decode(LIKE_SOURCES, {"decoding.rows": ROWS[0]}),
        **with_peers,
        "train_base_eighth": train("base", kernel, EIGHTH),
        "train_big_eighth": train("big", kernel, EIGHTH),
        **{f"decode_base_{rows}": decode(LIKE_SOURCES, {"decoding.rows": rows}) for rows in ROWS[1:]},
        "run": ["-m", "t2t", "train", *own_base(kernel, TRAINED), "--run", run, "--final_evaluation", "none"],
        "decode_run": [*decode({"decoding.rows": ROWS[0]}), "--run", run],
        "profile_base": part("profile", kernel),
        "train_base_dense": train("base"),
        "train_big_dense": train("big"),
        "train_base_scanned": train("base", kernel, SCANNED),
        "train_base_in_parts": train("base", IN_PARTS),
        "input": ["-m", "t2t", "bench", "input", *own_base(), "--json"],
    }


# ------------------------------------------------------------------------------ One after the other


class Results:
    """What was found so far, in one file that is whole at any time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "found.json"
        self.found: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    def add(self, name: str, found: dict[str, Any]) -> None:
        """Keeps it."""
        self.found[name] = found
        storage.write(self._file, json.dumps(self.found, indent=1) + "\n")


def measured(name: str, command: list[str], folder: Path, until: float) -> dict[str, Any]:
    """Runs one, until a time of time.monotonic() at the latest: what it found, and how it ended."""
    begin, file = time.monotonic(), folder / f"{name}.log"
    result = folder / f"{name}.json"  # of peers, which write after each round
    result.unlink(missing_ok=True)
    with open(file, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=max(0.0, until - begin) if until < float("inf") else None)
            status = str(process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the engines that it asks, too
            out, status = process.communicate()[0], "not done in time"
        log.write(out)
    found = json.loads(out) if out.startswith("{") else json.loads(result.read_text()) if result.is_file() else {}
    if status != "0":
        found["log"] = file.read_text(encoding="utf-8").splitlines()[-LINES:]
    return {**found, "status": status, "took_seconds": time.monotonic() - begin, "command": " ".join(command)}


def all_of_them(options: argparse.Namespace, data: dict[str, Any], results: Results) -> None:
    """Preflight, and then what is wanted."""
    until = time.monotonic() + options.seconds
    there = [*measurements(options, data, True)]
    wanted = options.only.split(",") if options.only else there
    if unknown := [name for name in wanted if name not in there]:
        raise SystemExit(f"--only: no {unknown[0]!r}; there are {', '.join(there)}")
    preflight = [str(HERE / "accelerator.py"), str(options.folder), "--part", "preflight"]
    results.add("preflight", measured("preflight", preflight, options.folder, until))
    fused = bool(results.found["preflight"].get("fused"))
    print(f"preflight: {results.found['preflight']}", flush=True)
    asked = measurements(options, data, fused)
    for name in wanted:
        if time.monotonic() > until:
            raise SystemExit(f"{name} and what follows it were not begun: {options.seconds:.0f} s are over")
        results.add(name, measured(name, asked[name], options.folder, until))
        print(f"{name}: {results.found[name]['status']}, {results.found[name]['took_seconds']:.0f} s", flush=True)


# ------------------------------------------------------------------------------ Parts, each in a process of its own


def preflight(_: argparse.Namespace) -> dict[str, Any]:
    """What this is, and whether fused attention is equation (1) here, in value and gradient, over packed rows."""
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(8, 64, 8, 64)), "bfloat16") for _ in range(3))
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [20, 30, 10, 4])[None].repeat(8, 0), "int32")

    def values_and_gradients(function: Callable[..., jax.Array]) -> list[np.ndarray]:
        def total(*given: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = function(*given, attention.Mask(segments, segments, causal=True))
            out = jnp.where((segments != 0)[..., None, None], out, 0).astype("float32")
            return (out * jnp.cos(jnp.arange(64.0))).sum(), out

        gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x, "float32") for x in (out, *gradients)]

    found: dict[str, Any] = {"devices": [str(device.device_kind) for device in jax.devices()], "jax": jax.__version__}
    found |= {"python": platform.python_version(), "driver": _nvidia("driver_version")}
    try:
        pairs = zip(*map(values_and_gradients, (attention.fused, attention.attention)), strict=True)
        found["difference"] = max(float(np.abs(a - b).max()) for a, b in pairs)
    except (UserError, RuntimeError) as error:  # of JAX's: XLA's and cuDNN's own
        return {**found, "fused": False, "why": str(error)}
    return {**found, "fused": found["difference"] < CLOSE}  # not so of a NaN


def train(options: argparse.Namespace) -> dict[str, Any]:
    """`t2t bench train`, with what the first GPU draws while steps are timed and the memory that was really taken."""
    power = Power()

    def say(line: str) -> None:
        print(line, file=sys.stderr)
        if line.startswith("timing"):
            power.start()

    try:
        found = bench.train(_experiment(options), options.steps, say)
    finally:
        watts = power.stop()
    return {**found, "watts": watts, "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """A trace of a few steps, and the program that they run."""
    experiment = _experiment(options)
    trainer = bench.Trainer(experiment, sharding.make_mesh(experiment.mesh), lambda line: print(line, file=sys.stderr))
    trainer.compile()
    trainer.warm()
    (program,) = trainer.compiled.values()
    (options.folder / "profile_base.hlo").write_text(program.as_text())
    with jax.profiler.trace(options.folder / "profile_base"):
        trainer.run(PROFILED)
    return {"steps": PROFILED}


PARTS = {"preflight": preflight, "train": train, "profile": profile}


def _experiment(options: argparse.Namespace) -> Experiment:
    return override(get("own_base"), options.knobs)


class Power:
    """Watts that the first GPU draws, asked of nvidia-smi every half second if it is there."""

    def __init__(self) -> None:
        self._watts: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def stop(self) -> float | None:
        """The median of what was answered, or None without any."""
        self._done.set()
        if self._thread.ident:
            self._thread.join()
        return statistics.median(self._watts) if self._watts else None

    def _ask(self) -> None:
        while not self._done.wait(0.5):
            if not (answer := _nvidia("power.draw")):
                return
            self._watts.append(float(answer))


def _nvidia(what: str) -> str | None:
    """What nvidia-smi says of the first GPU; None without one."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# ------------------------------------------------------------------------------ Cost, and data


def costs(found: dict[str, Any]) -> dict[str, Any]:
    """Hours and energy of the paper's runs by the speed that was found, on one device and on eight.

    Raises:
        SystemExit: a speed was not measured.
    """
    hours: dict[str, Any] = {}
    for size in STEPS:
        for devices, name in ((1, f"train_{size}"), (8, f"train_{size}_eighth")):
            if "flops_per_second" not in (measured := found.get(name, {})):
                raise SystemExit(f"{name} was not measured, of which the hours on {devices} device(s) would be")
            rate = ["--rate", str(measured["flops_per_second"] / 1e12)]
            watts = ["--watts", str(measured["watts"])] if measured["watts"] else []
            command = ["-m", "t2t", "cost", f"ende_{size}", "--json", *rate, *watts, "--mesh.data", str(devices)]
            done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True)
            hours[f"{size} on {devices}"] = json.loads(done.stdout)
    return hours


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true", help="only write and prepare the pairs")
    parser.add_argument("--cost", action="store_true", help="only hours and energy by what was found")
    parser.add_argument("--part", choices=PARTS, help="only this, of what the knobs say")
    parser.add_argument("--only", default="", help="some of the measurements, with commas between; without, all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="all ends so long after the start")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=0, help="of each training; without, some ten seconds of an H200")
    parser.add_argument("--peers", default="", help="the Python that has PyTorch installed")
    options, knobs = parser.parse_known_args()
    options.knobs = commands.knobs(knobs)
    options.folder = options.folder.resolve()
    # Engines beside each other share the memory of one device.
    os.environ |= {"T2T_DATA": str(options.folder / "cache"), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if options.part:
        compilation.keep_compiled()
        memory.one_heap()
        print(json.dumps(PARTS[options.part](options)))
        return
    results = Results(options.folder)
    if options.cost:
        results.add("cost", costs(results.found))
        print(json.dumps(results.found["cost"], indent=1))
        return
    data = pairs(options.folder, options.pairs)
    if options.prepare:
        command = [sys.executable, "-m", "t2t", "prepare", "own_base", *words(data, WHOLE, options.knobs)]
        raise SystemExit(subprocess.run(command).returncode)
    all_of_them(options, data, results)


if __name__ == "__main__":
    main()
