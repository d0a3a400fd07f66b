"""How fast an experiment is on this machine: training, decoding, and reading its batches.

A speed means little alone: what the machine can do at most is measured beside it, in the same process (`matrix_rate`).
Where parts of a measurement are timed one by one, their median and quartiles are told.
"""

import contextlib
import functools
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from t2t import checkpoint, cost, memory
from t2t.batch import Batch, Sequences
from t2t.constraints import constraint_of
from t2t.data.pipeline import TrainingBatches, read_ahead
from t2t.data.prepare import Sizes, prepare
from t2t.data.vocabulary import Vocabularies
from t2t.decode import decode
from t2t.errors import UserError
from t2t.experiment import Experiment, override, with_attention
from t2t.models.products import einsum
from t2t.run import begun_from
from t2t.sharding import MeshConfig, check_layout, make_mesh, on, place, unboxed
from t2t.train import (
    Compiled,
    abstract_state,
    compiled_steps,
    describe_devices,
    new_state,
    shapes_of,
    share,
    train_step,
)

Say = Callable[[str], None]
GROUPS = 10  # a measurement is timed in so many parts
WIDTH = {"cpu": 2048}  # rows and columns of the product that is timed; elsewhere WIDE
WIDE = 8192
MANY = 2**40  # more steps than anyone takes
PRODUCTS = 8  # products one after the other in a timing


class Spread(NamedTuple):
    """What several timings gave."""

    median: float
    low: float  # the first quartile
    high: float  # the third


def spread(values: list[float]) -> Spread:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(statistics.median(values), low, high)


def _timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


def matrix_rate(mesh: jax.sharding.Mesh, dtype: str) -> float:
    """FLOP/s of large square products on all devices of a mesh at once: what a step of training can hope for."""
    n = WIDTH.get(mesh.devices.flat[0].platform, WIDE)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))

    @jax.jit
    def made(key: jax.Array) -> jax.Array:
        values = jax.random.normal(key, (mesh.size, n, n), dtype) / np.sqrt(n).astype(dtype)
        return jax.lax.with_sharding_constraint(values, where)

    @jax.jit
    def products(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, y: einsum("ijk,ikl->ijl", x, y, dtype), x)

    x = made(jax.random.key(0))
    jax.block_until_ready(products(x))
    seconds = min(_timed(lambda: products(x)) for _ in range(GROUPS))
    return mesh.size * PRODUCTS * 2 * n**3 / seconds


@contextlib.contextmanager
def _kept_apart() -> Iterator[None]:
    """Inside, JAX keeps compiled programs in a folder of their own, which is empty at first; then with all others."""
    before = jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as folder:
        _keep_in(folder)
        try:
            yield
        finally:
            _keep_in(before)
            if before:
                shutil.copytree(folder, before, dirs_exist_ok=True)


def _keep_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at the folder's name once


# ------------------------------------------------------------------------------ Training


class Trainer:
    """Training steps on an experiment's own batches, one after the other from the first; nothing is written."""

    def __init__(self, experiment: Experiment, mesh: jax.sharding.Mesh, say: Say) -> None:
        """Prepares the data and makes a state, compiles nothing.

        Raises:
            UserError: see `train.train`.
        """
        check_layout(mesh, checkpoint.abstract_params(experiment))
        self._experiment, self._mesh = experiment, mesh
        self.batches = training_batches(experiment, mesh, say)
        self.state = new_state(experiment, mesh)
        self.compiled: Compiled = {}
        self._flops: dict[Any, int] = {}  # of a step, by its shapes
        self._read = read_ahead(self.batches, 0, MANY)

    def compile(self) -> None:
        """Compiles the step for each shape of batch."""
        self.compiled = compiled_steps(self._experiment, self._mesh, self.state, self.batches)

    def warm(self) -> None:
        """Counts the FLOPs of a step of each shape, and takes one, on a batch that holds nothing."""
        self._flops = {shape: _flops(self._experiment, shape) for shape in self.compiled}
        memory.keep_freed(self._mesh, self.compiled.values())
        with on(self._mesh):
            for bucket in self.batches.epochs.buckets:
                self._step(self.batches.empty(bucket))
        jax.block_until_ready(self.state)

    def run(self, steps: int) -> dict[str, float]:
        """The next steps, as training reads and takes them.

        Returns "tokens" (of targets, no padding), "loss", summed over them, "positions" of targets, "flops" (padding
        computed too) and "wait": seconds for data.
        """
        sums, found = [], {"positions": 0.0, "flops": 0.0, "wait": 0.0}
        with on(self._mesh):
            for _ in range(steps):
                begin = time.perf_counter()
                batch: Batch = next(self._read)
                found["wait"] += time.perf_counter() - begin
                sums.append(self._step(batch))
                found["positions"] += batch.target.tokens.size
                found["flops"] += self._flops[shapes_of(batch)]
        sums = jax.device_get(sums)
        return {**{name: float(sum(each[name] for each in sums)) for name in ("tokens", "loss")}, **found}

    def _step(self, batch: Batch) -> dict[str, jax.Array]:
        self.state, sums = self.compiled[shapes_of(batch)](self.state, place(self._mesh, batch))
        return sums


def train(experiment: Experiment, steps: int, say: Say) -> dict[str, Any]:
    """`steps` training steps on the experiment's own batches, after one of each shape that is not counted.

    Returns, as JSON has it: "tokens_per_second" (target tokens, without padding; a `Spread`), "seconds_per_step" (too),
    "flops_per_second" (of the step as `t2t cost` counts it, padding computed too), "matrix_rate" and "utilisation",
    their quotient; "loss" per token of these steps; "compile_seconds" with nothing kept from before, and
    "compile_again_seconds" from the cache of compiled programs; "memory_per_device" (bytes, by XLA), "padding" and
    "wait", the part of the time that training waited for its data.

    Raises:
        UserError: see `train.train`; or the loss is not finite, so that no speed means anything.
    """
    mesh = make_mesh(experiment.mesh)
    trainer = Trainer(experiment, mesh, say)
    say(f"compiling {len(trainer.batches.epochs.buckets)} shapes, with nothing kept and again")
    with _kept_apart():
        compile_seconds, again = _timed(trainer.compile), _timed(trainer.compile)
    rate = matrix_rate(mesh, _dtype(experiment))
    trainer.warm()
    say(f"timing {steps} steps")
    seconds, found = [], []
    groups = [len(group) for group in np.array_split(np.arange(steps), min(GROUPS, steps))]
    for size in groups:
        begin = time.perf_counter()
        found.append(trainer.run(size))
        seconds.append(time.perf_counter() - begin)
    total = {name: sum(each[name] for each in found) for name in found[0]}
    if not math.isfinite(loss := total["loss"] / total["tokens"]):
        raise UserError(f"the loss of these steps is {loss}: their speed means nothing")
    flops = total["flops"] / sum(seconds)
    return {
        "what": "train",
        **_where(experiment, mesh),
        "steps": steps,
        "tokens_per_second": spread([f["tokens"] / s for f, s in zip(found, seconds, strict=True)])._asdict(),
        "seconds_per_step": spread([s / size for s, size in zip(seconds, groups, strict=True)])._asdict(),
        "loss": loss,
        "flops_per_second": flops,
        "matrix_rate": rate,
        "utilisation": flops / rate,
        "compile_seconds": compile_seconds,
        "compile_again_seconds": again,
        "shapes": len(trainer.compiled),
        "memory_per_device": max(memory.needed(step) for step in trainer.compiled.values()),
        "padding": 1 - total["tokens"] / total["positions"],
        "wait": total["wait"] / sum(seconds),
    }


def _flops(experiment: Experiment, shapes: Any) -> int:
    """Those of a training step on a batch of these shapes, as `cost.cost` counts them."""
    experiment = override(with_attention(experiment, "dense"), {"mesh.logits_per_device": math.prod(shapes[1])})
    sides = (jax.ShapeDtypeStruct(shape, "int32") for shape in shapes)
    batch = Batch(*(Sequences(side, side, side) for side in sides))
    traced = jax.make_jaxpr(lambda state, batch: train_step(experiment, state, batch))
    return cost.flops(traced(unboxed(abstract_state(experiment)), batch).jaxpr)


def training_batches(experiment: Experiment, mesh: jax.sharding.Mesh, say: Say) -> TrainingBatches:
    """An experiment's batches, as training on this mesh has them.

    Raises:
        UserError: see `prepare`.
    """
    sizes = Sizes(experiment.model.vocab_size, experiment.model.target_vocab_size)
    found = begun_from(experiment)
    prepared = prepare(experiment.task, sizes, say, found and found[2])
    return TrainingBatches(prepared, experiment.batching, experiment.seed, share(experiment, mesh))


def _dtype(experiment: Experiment) -> str:
    """Of the model's products."""
    model: Any = experiment.model
    return model.dtype


def _where(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    return {"experiment": experiment.name, "devices": describe_devices(mesh), "dtype": _dtype(experiment)}


# ------------------------------------------------------------------------------ Reading


def read(experiment: Experiment, steps: int, say: Say) -> dict[str, Any]:
    """Batches from the tokenised cache, as training reads them ahead, with nothing that uses them up.

    Returns "first_seconds" until the first batch is there, and of the `steps` after it "tokens_per_second" (target
    tokens, a `Spread`) and "batches_per_second".

    Raises:
        UserError: see `prepare`.
    """
    mesh = make_mesh(experiment.mesh)
    batches = training_batches(experiment, mesh, say)
    begin = time.perf_counter()
    source = read_ahead(batches, 0, steps + 1)
    next(source)
    first, seconds, tokens = time.perf_counter() - begin, [], []
    for group in np.array_split(np.arange(steps), min(GROUPS, steps)):
        begin, made = time.perf_counter(), [next(source) for _ in group]
        seconds.append(time.perf_counter() - begin)
        tokens.append(sum(int((batch.target.segments != 0).sum()) for batch in made))
    return {
        "what": "input",
        **_where(experiment, mesh),
        "pairs": batches.epochs.pairs,
        "steps": steps,
        "first_seconds": first,
        "tokens_per_second": spread([n / s for n, s in zip(tokens, seconds, strict=True)])._asdict(),
        "batches_per_second": steps / sum(seconds),
    }


# ------------------------------------------------------------------------------ Decoding


def decoding(
    experiment: Experiment,
    params: Any,
    vocabulary: Vocabularies,
    sentences: int,
    mesh: jax.sharding.Mesh | None,
    say: Say,
) -> dict[str, Any]:
    """The first `sentences` of dev, decoded again and again by the experiment's own search; the first time compiles.

    `mesh` is the one that is set, over which weights and work are split; without one, a single device decodes.
    Returns "sentences_per_second" and "tokens_per_second" of outputs, a `Spread` each, and "first_seconds", compilation
    included.

    Raises:
        UserError: dev cannot be read, or its texts have no sources.
    """
    task = experiment.task
    if not task.has_sources:
        raise UserError(f"{experiment.name} has no sources to decode: its texts are modelled, not translated")
    pairs = [pair for _, pair in zip(range(sentences), task.pairs("dev"), strict=False)]
    sources, model = vocabulary.encode(pairs)[0], experiment.model.build()
    constraint = constraint_of(task, vocabulary, [pair.source for pair in pairs])
    search = functools.partial(decode, longest=experiment.model.longest, constraint=constraint, wanted=1)

    def all_of_them() -> int:
        found = search(model, params, sources, experiment.decoding)
        return sum(len(best[0].tokens) + 1 for _, best in found)  # EOS counted

    say(f"decoding {len(sources):,} sentences, {GROUPS // 2} times after the first")
    first = _timed(lambda: all_of_them() and None)
    runs = []
    for _ in range(GROUPS // 2):
        begin = time.perf_counter()
        tokens = all_of_them()
        runs.append((tokens, time.perf_counter() - begin))
    return {
        "what": "decode",
        **_where(experiment, mesh or make_mesh(MeshConfig(data=1))),
        "beam": experiment.decoding.beam,
        "sentences": len(sources),
        "first_seconds": first,
        "sentences_per_second": spread([len(sources) / seconds for _, seconds in runs])._asdict(),
        "tokens_per_second": spread([tokens / seconds for tokens, seconds in runs])._asdict(),
    }


# ------------------------------------------------------------------------------ In words


def table(found: dict[str, Any]) -> str:
    """A measurement as lines of words."""
    return "\n".join(f"{name.replace('_', ' '):<24} {_words(name, value)}" for name, value in found.items())


def _words(name: str, value: Any) -> str:
    if isinstance(value, dict):
        digits = 4 if name == "seconds_per_step" else 0
        return "{:,.{n}f}  (quartiles {:,.{n}f} to {:,.{n}f})".format(*value.values(), n=digits)
    if name in ("padding", "wait", "utilisation"):
        return f"{value:.1%}"
    if name in ("flops_per_second", "matrix_rate"):
        return f"{value / 1e9:,.1f} GFLOP/s"
    if name == "memory_per_device":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
