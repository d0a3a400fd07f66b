"""How fast an experiment is on this machine: training, decoding, and reading its batches.

A speed means little alone: what the machine can do at most is measured beside it, in the same process (`matrix_rate`).
Where parts of a measurement are timed one by one, their median and quartiles are told.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t2t import cost, memory
from t2t.batch import Batch, Sequences
from t2t.data.pipeline import TrainingBatches, read_ahead
from t2t.data.prepare import Sizes, prepare
from t2t.data.vocabulary import Vocabularies
from t2t.decode import decode
from t2t.experiment import Experiment, override
from t2t.sharding import make_mesh, on, place, unboxed
from t2t.train import abstract_state, compiled_steps, describe_devices, new_state, shapes_of, share, train_step

Say = Callable[[str], None]
GROUPS = 10  # a measurement is timed in so many parts
WIDTH = {"cpu": 2048}  # rows and columns of the product that is timed; elsewhere WIDE
WIDE = 8192
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
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, y: jnp.matmul(x, y), x)

    x = made(jax.random.key(0))
    jax.block_until_ready(products(x))
    seconds = min(_timed(lambda: products(x)) for _ in range(GROUPS))
    return mesh.size * PRODUCTS * 2 * n**3 / seconds


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """Inside, JAX compiles what it has compiled before."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


# ------------------------------------------------------------------------------ Training


def train(experiment: Experiment, steps: int, say: Say) -> dict[str, Any]:
    """`steps` training steps on the experiment's own batches, after one of each shape that is not counted.

    Returns, as JSON has it: "tokens_per_second" (target tokens, without padding; a `Spread`), "flops_per_second" (of
    the step as `t2t cost` counts it, padding computed too), "matrix_rate" and "utilisation", their quotient;
    "compile_seconds" with nothing kept from before, and "compile_again_seconds" from the cache of compiled programs;
    "memory_per_device" (bytes, by XLA), "padding" and "wait", the part of the time that training waited for its data.

    Raises:
        UserError: see `train.train`.
    """
    mesh = make_mesh(experiment.mesh)
    batches = _batches(experiment, mesh, say)
    state = new_state(experiment, mesh)
    say(f"compiling {len(batches.epochs.buckets)} shapes, with nothing kept and again")
    with _nothing_kept():
        compile_seconds = _timed(lambda: compiled_steps(experiment, mesh, state, batches) and None)
    compiled_steps(experiment, mesh, state, batches)  # keeps what is compiled
    begin = time.perf_counter()
    compiled = compiled_steps(experiment, mesh, state, batches)
    again = time.perf_counter() - begin
    counted = {shape: _flops(experiment, shape) for shape in compiled}
    rate = matrix_rate(mesh, _dtype(experiment))
    say(f"timing {steps} steps")
    with on(mesh):
        for bucket in batches.epochs.buckets:
            empty = batches.empty(bucket)
            state, _ = compiled[shapes_of(empty)](state, place(mesh, empty))
        timed = _steps(state, compiled, mesh, batches, steps)
    seconds, positions = sum(timed.seconds), sum(np.prod(shape[1]) for shape in timed.shapes)
    flops = sum(counted[shape] for shape in timed.shapes) / seconds
    return {
        "what": "train",
        **_where(experiment, mesh),
        "steps": steps,
        "tokens_per_second": spread([n / s for n, s in zip(timed.tokens, timed.seconds, strict=True)])._asdict(),
        "flops_per_second": flops,
        "matrix_rate": rate,
        "utilisation": flops / rate,
        "compile_seconds": compile_seconds,
        "compile_again_seconds": again,
        "shapes": len(compiled),
        "memory_per_device": max(memory.needed(step) for step in compiled.values()),
        "padding": float(1 - sum(timed.tokens) / positions),
        "wait": timed.waited / seconds,
    }


class _Timed(NamedTuple):
    seconds: list[float]  # of each group of steps
    tokens: list[float]  # of each group
    shapes: list[Any]  # of each step's batch
    waited: float  # seconds for data


def _steps(state: Any, compiled: Any, mesh: jax.sharding.Mesh, batches: TrainingBatches, steps: int) -> _Timed:
    read, timed, waited = read_ahead(batches, 0, steps), _Timed([], [], [], 0.0), 0.0
    for group in np.array_split(np.arange(steps), min(GROUPS, steps)):
        begin, sums = time.perf_counter(), []
        for _ in group:
            before = time.perf_counter()
            batch: Batch = next(read)
            waited += time.perf_counter() - before
            state, found = compiled[shapes_of(batch)](state, place(mesh, batch))
            sums.append(found["tokens"])
            timed.shapes.append(shapes_of(batch))
        tokens = float(sum(jax.device_get(sums)))
        timed.seconds.append(time.perf_counter() - begin)
        timed.tokens.append(tokens)
    return timed._replace(waited=waited)


def _flops(experiment: Experiment, shapes: Any) -> int:
    """Those of a training step on a batch of these shapes, as `cost.cost` counts them."""
    experiment = override(experiment, {"mesh.logits_per_device": math.prod(shapes[1])})
    sides = (jax.ShapeDtypeStruct(shape, "int32") for shape in shapes)
    batch = Batch(*(Sequences(side, side, side) for side in sides))
    traced = jax.make_jaxpr(lambda state, batch: train_step(experiment, state, batch))
    return cost.flops(traced(unboxed(abstract_state(experiment)), batch).jaxpr)


def _batches(experiment: Experiment, mesh: jax.sharding.Mesh, say: Say) -> TrainingBatches:
    sizes = Sizes(experiment.model.vocab_size, experiment.model.target_vocab_size)
    prepared = prepare(experiment.task, sizes, say)
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
    batches = _batches(experiment, mesh, say)
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


def decoding(experiment: Experiment, params: Any, vocabulary: Vocabularies, sentences: int, say: Say) -> dict[str, Any]:
    """The first `sentences` of dev, decoded again and again by the experiment's own search; the first time compiles.

    Returns "sentences_per_second" and "tokens_per_second" of outputs, a `Spread` each, and "first_seconds", compilation
    included.

    Raises:
        UserError: dev cannot be read.
    """
    pairs = [pair for _, pair in zip(range(sentences), experiment.task.pairs("dev"), strict=False)]
    sources, model = vocabulary.encode(pairs)[0], experiment.model.build()

    def all_of_them() -> int:
        found = decode(model, params, sources, experiment.decoding, longest=experiment.model.longest)
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
        **_where(experiment, make_mesh(experiment.mesh)),
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
        return f"{value['median']:,.0f}  (quartiles {value['low']:,.0f} to {value['high']:,.0f})"
    if name in ("padding", "wait", "utilisation"):
        return f"{value:.1%}"
    if name in ("flops_per_second", "matrix_rate"):
        return f"{value / 1e9:,.1f} GFLOP/s"
    if name == "memory_per_device":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
