"""Training: a small state, a pure step, and the loop around them."""

import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from t2t import checkpoint, distributed, memory, run
from t2t.batch import Batch, Sequences
from t2t.data.batching import Bucket, Epochs
from t2t.data.pipeline import TrainingBatches, read_ahead, texts
from t2t.data.prepare import SIDES, Prepared, Sizes, prepare
from t2t.errors import UserError
from t2t.evaluate import averages, perplexity, read_split
from t2t.experiment import Experiment, override
from t2t.loss import Sums, in_slices, slices
from t2t.models.attention import check_rows
from t2t.models.dropout import rows_from
from t2t.run import Run
from t2t.sharding import (
    batch_shares,
    check_layout,
    local_rows,
    make_mesh,
    on,
    parts,
    place,
    replicated,
    row_shares,
    shardings,
    unboxed,
)

Say = Callable[[str], None]
Show = Callable[[int, float, float], None]
Shape = tuple[int, ...]
Compiled = dict[tuple[Shape, Shape], Any]  # steps (state, batch) -> (state, sums), by `shapes_of` their batches


class Stopped(Exception):
    """A signal ended training; the state was saved first."""


class NotFinite(Exception):
    """Something of a step, or after it, is infinite or no number. `of_batch`: the step's batch is what to look at."""

    def __init__(self, step: int, what: str = "loss or gradient", of_batch: bool = True) -> None:
        super().__init__(step, what)
        self.step, self.what, self.of_batch = step, what, of_batch


@flax.struct.dataclass
class TrainState:
    """All arrays that change during training."""

    step: jax.Array  # updates made so far
    params: Any
    optimizer: optax.OptState


def init_state(experiment: Experiment, key: jax.Array) -> TrainState:
    """The state before the first step, its parameters boxed with their layout letters."""
    tokens = jnp.ones((1, 8), jnp.int32)
    sequences = Sequences(tokens, tokens, tokens)
    params = experiment.model.build().init(key, sequences, sequences)
    optimizer = experiment.optimizer.build(experiment.model.d_model).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer)


def abstract_state(experiment: Experiment) -> TrainState:
    """The shapes of `init_state`, boxed alike; nothing is computed."""
    return jax.eval_shape(lambda: init_state(experiment, jax.random.key(experiment.seed)))


def train_step(experiment: Experiment, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
    """One update. Pure: dropout is a function of the seed and the step.

    The gradient is that of the smoothed loss per target token of the batch. The sums are those of `cross_entropy`, and
    "gradient_norm" and "steps", 1.
    A batch [P B T] is computed in P parts, one after the other: the same update, in the memory of one part.
    """
    gradient, sums = _gradient(experiment, state, batch)
    adam = experiment.optimizer.build(experiment.model.d_model)
    updates, optimizer = adam.update(gradient, state.optimizer, state.params)
    sums |= {"gradient_norm": optax.tree.norm(gradient), "steps": jnp.ones(())}
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), optimizer), sums


def _gradient(experiment: Experiment, state: TrainState, batch: Batch) -> tuple[Any, Sums]:
    model: Any = experiment.model.build()
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    tokens = jnp.maximum((batch.target.segments != 0).sum(), 1)

    def loss(params: Any, part: Batch, first_row: jax.Array | int) -> tuple[jax.Array, Sums]:
        with rows_from(first_row):
            rngs = {"dropout": key}
            y = model.apply(params, part.source, part.target, train=True, rngs=rngs, method="hidden")
        target, segments, _ = part.target
        number = slices(-(-len(target) // row_shares()), target.shape[1], experiment.mesh.logits_per_device)
        sums = in_slices(
            lambda y: model.apply(params, y, method="logits"), y, target, segments, experiment.label_smoothing, number
        )
        return sums["loss"] / tokens, sums

    gradient = jax.grad(loss, has_aux=True)
    if batch.target.tokens.ndim == 2:
        return gradient(state.params, batch, 0)
    parts, rows = batch.target.tokens.shape[:2]

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(state.params, *part)), None

    first_rows = jnp.arange(parts, dtype=jnp.uint32) * rows
    shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], batch), first_rows[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (batch, first_rows))[0]


# ------------------------------------------------------------------------------ The loop


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a process trains; nothing that comes out depends on it."""

    from_step: int | None = None  # go on from this checkpoint; later ones are set aside
    auto_accumulate: bool = False  # compute batches in as many parts as the memory of a device makes necessary


def train(experiment: Experiment, folder: Path, say: Say, show: Show, config: TrainingConfig = TrainingConfig()) -> Run:
    """Trains `experiment` in the run folder, from its last checkpoint if it has one, up to `train_steps`.

    `say` is told what happens; `show` step, loss and tokens a second at every logged step. Where a run has many
    processes each calls this, and the first alone writes.

    Raises:
        UserError: something about data, folder, mesh, memory, checkpoint or loss that the user can mend.
        Stopped: SIGTERM or SIGINT came to any of the processes; the last step is saved.
    """
    mesh = make_mesh(experiment.mesh)
    check_layout(mesh, abstract_state(experiment).params)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            sizes = Sizes(experiment.model.vocab_size, experiment.model.target_vocab_size)
            if begun := run.going_on(folder, experiment.init_from) or run.begun_from(experiment):
                checkpoint.check_fits(begun[1], experiment)
            prepared = prepare(experiment.task, sizes, say, begun and begun[2])
            batches = TrainingBatches(prepared, experiment.batching, experiment.seed, share(experiment, mesh))
            dev = _splits_to_come(experiment, batches, prepared)
            where = stack.enter_context(_opened(experiment, folder, prepared, config, say))
        distributed.check_equal("experiment and data", f"{experiment} {prepared.fingerprint}")
        stop = stack.enter_context(_signals())
        stack.enter_context(on(mesh))
        # Two more than are averaged: that which a signal or the end of a part left last, and the one that is next.
        checkpoints = stack.enter_context(checkpoint.writer(where.checkpoints, experiment.average + 2))
        state, position = _begin(experiment, mesh, checkpoints)
        before = int(state.step)
        if before >= experiment.train_steps:
            say(f"{folder}: trained for {before:,} steps already")
            return where
        say(f"{folder}: {f'going on after step {before:,}' if before else 'a new run'}")
        say(_numbers(experiment, mesh, state, batches.epochs))
        compiled, experiment = _compile(experiment, mesh, state, batches, config.auto_accumulate, say)
        memory.keep_freed(mesh, compiled.values())
        batches = batches.shared(share(experiment, mesh))
        if before and (passed := checkpoint.remove_passed(checkpoints, where, experiment)):
            say(f"removed checkpoint {', '.join(map(str, passed))}, with which an earlier part of the run ended")
        with distributed.together():
            board = stack.enter_context(_begun(where, experiment, prepared, mesh, before))
        read = read_ahead(batches, position["data"]["next_index"], experiment.train_steps)
        log, due, agreement = Log(where, board, position["sums"]), Due(experiment), distributed.Agreement(mesh, 2)
        try:
            for step, batch in enumerate(read, before + 1):
                state, sums = compiled[shapes_of(batch)](state, place(mesh, batch))
                log.add(step, sums)
                log_now, evaluate_now, save_now = due.after(step)
                if log_now:
                    row = log.close(step, _rate(experiment, step))
                    show(step, row["loss"], row["tokens_per_second"])
                stopping, minutes_over = agreement.reached(bool(stop), due.by_minutes())
                save_now = save_now or minutes_over or stopping
                if evaluate_now or save_now:
                    with log.pause():
                        _refuse_broken(state, step)
                        position = {"data": read.get_state(), "sums": log.total()}
                        if evaluate_now:
                            row = log.write(step, "dev", _on_dev(experiment, state, dev, step))
                            say(f"step {step:,}: dev perplexity {row['perplexity']:.2f}")
                        if save_now:
                            checkpoint.save(checkpoints, step, state.params, state.optimizer, position)
                            due.saved()
                if stopping:
                    again = "" if config.from_step is None else ", without --from-step,"
                    raise Stopped(
                        f"{folder}: stopped after step {step:,} and saved; the same command{again} goes on from here"
                    )
        except NotFinite as broken:
            raise UserError(_not_finite(where, broken, prepared, experiment)) from None
    return where


@contextlib.contextmanager
def _opened(
    experiment: Experiment, folder: Path, prepared: Prepared, config: TrainingConfig, say: Say
) -> Iterator[Run]:
    """The run folder, held by the first process, without what the user wants set aside."""
    if not distributed.first():
        yield Run(folder)
        return
    with run.open_for_training(folder, experiment, prepared) as where:
        if config.from_step is not None:
            later = checkpoint.set_aside(where.checkpoints, config.from_step, where.set_aside)
            scored = run.set_evaluations_aside(where, config.from_step)
            steps = ", ".join(f"{step:,}" for step in later) or "none"
            more = f", and {scored} evaluation(s) of such" if scored else ""
            say(
                f"going on from step {config.from_step:,}; later checkpoints ({steps}){more} now lie in "
                f"{where.set_aside}; without --from-step the same command goes on from the last"
            )
        yield where


@contextlib.contextmanager
def _begun(
    where: Run, experiment: Experiment, prepared: Prepared, mesh: Mesh, before: int
) -> Iterator[run.Board | None]:
    """Writes how this part of the run begins, in the first process; there, the writer of TensorBoard's files."""
    if not distributed.first():
        yield None
        return
    run.begin(where, experiment, prepared, describe_devices(mesh), before)
    run.cut_metrics(where, before)
    with run.tensorboard(where, before) as board:
        yield board


def _not_finite(where: Run, broken: NotFinite, prepared: Prepared, experiment: Experiment) -> str:
    """Writes the pairs of the step's batch, if that is what to look at; what there is to say."""
    step, kept = broken.step, "the checkpoints before it are kept"
    said = f"{broken.what} is not finite at step {step:,}"
    if not broken.of_batch:
        return f"{said}; {kept}"
    batch = TrainingBatches(prepared, experiment.batching, experiment.seed)[step - 1]
    file = "its first process's run folder"
    if distributed.first():
        file = run.write_batch(where, step, texts(batch, prepared.vocabulary))
    return f"{said}: its batch is in {file}; {kept}"


class Due:
    """What falls due as often as the experiment asks for it, and after the last step."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._saved = experiment, time.monotonic()

    def after(self, step: int) -> tuple[bool, bool, bool]:
        """Whether to log, to evaluate and to save after `step`."""
        e = self._experiment
        log, evaluate, save = (step % n == 0 for n in (e.log_every, e.evaluate_every, e.checkpoint_every))
        last = step == e.train_steps
        return log or last, evaluate or last, (save and not e.checkpoint_minutes) or last

    def by_minutes(self) -> bool:
        """Whether to save by this process's clock, where checkpoints go by minutes (section 6.1: 10)."""
        minutes = self._experiment.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def saved(self) -> None:
        """The minutes begin anew."""
        self._saved = time.monotonic()


class Log:
    """Sums of the steps since the last logged one, left on the device until they are asked for."""

    def __init__(self, where: Run, board: run.Board | None, before: dict[str, float]) -> None:
        """`board`: None where nothing is written. `before`: sums of steps not yet logged, from the checkpoint."""
        self._where, self._board = where, board
        self._total, self._pending = dict(before), []
        self._since, self._tokens = time.monotonic(), 0.0

    def add(self, step: int, sums: Sums) -> None:
        """One more step."""
        self._pending.append((step, sums))

    def total(self) -> dict[str, float]:
        """All sums so far.

        Raises:
            NotFinite: one of them is not; names the first step.
        """
        for step, sums in jax.device_get(self._pending):
            if not all(np.isfinite(value) for value in sums.values()):
                raise NotFinite(step)
            self._tokens += float(sums["tokens"])
            for name, value in sums.items():
                self._total[name] = self._total.get(name, 0.0) + float(value)
        self._pending.clear()
        return dict(self._total)

    def close(self, step: int, rate: float) -> dict[str, Any]:
        """Writes the averages of the interval, with the learning rate, and begins the next interval."""
        total = self.total()
        row = {**averages(total), "gradient_norm": total["gradient_norm"] / total["steps"]}
        seconds = time.monotonic() - self._since
        timing = {"seconds": round(seconds, 3), "tokens_per_second": round(self._tokens / seconds, 1)}
        self._total, self._tokens, self._since = {}, 0.0, time.monotonic()
        return self.write(step, "train", {**row, **timing, "learning_rate": rate})

    def write(self, step: int, split: str, numbers: dict[str, float]) -> dict[str, Any]:
        """A row of metrics.jsonl, and the same for TensorBoard."""
        row = {"step": step, "split": split, **numbers}
        if self._board:
            run.append_metrics(self._where, row, self._board)
        return row

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside does not count as training time. Waits for the steps that are under way."""
        jax.block_until_ready(self._pending)
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin


def _on_dev(experiment: Experiment, state: TrainState, dev: list[Batch], step: int) -> dict[str, float]:
    """`perplexity` of dev; raises NotFinite when its loss is not."""
    found = perplexity(experiment.model.build(), state.params, dev)
    if not np.isfinite(found["loss"]):
        raise NotFinite(step, "the loss on dev", of_batch=False)
    return found


def _refuse_broken(state: TrainState, step: int) -> None:
    """Raises NotFinite when weights are not finite: a checkpoint of them would be the end of the run."""
    if not _finite(state.params):
        raise NotFinite(step, "the norm of the weights")


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.isfinite(optax.tree.norm(params))


# ------------------------------------------------------------------------------ Before the first step


def _splits_to_come(experiment: Experiment, batches: TrainingBatches, prepared: Prepared) -> list[Batch]:
    """The batches of dev. All that training will read later is read once now: a mistake shows before the first step."""
    longest, most = experiment.model.longest, batches.epochs.longest
    if longest is not None and most > longest:
        raise UserError(f"--batching.max_length lets sentences of {most} tokens in; the model takes {longest}")
    if experiment.final_evaluation == "test":
        read_split(experiment, prepared.vocabulary, "test")
    return read_split(experiment, prepared.vocabulary, "dev").batches()


def describe_devices(mesh: Mesh) -> str:
    """How many devices of which kind a mesh has, such as "8 x NVIDIA H200 (gpu)"."""
    first = mesh.devices.flat[0]
    return f"{mesh.size} x {first.device_kind} ({first.platform})"


def _begin(experiment: Experiment, mesh: Mesh, checkpoints: ocp.CheckpointManager) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from and the position that belongs to it, born in their layout over the mesh."""
    step = checkpoints.latest_step()
    if step is None:
        state, position = new_state(experiment, mesh), {"data": {"next_index": 0}, "sums": {}}
        if found := run.begun_from(experiment):
            params, _ = checkpoint.load_params(found[0], found[1], mesh=mesh)
            state = TrainState(state.step, params, state.optimizer)
        return state, position
    abstract = abstract_state(experiment)
    layout = shardings(mesh, abstract)
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), unboxed(abstract), layout
    )
    params, optimizer, position = checkpoint.restore(checkpoints, step, shapes.params, shapes.optimizer)
    return TrainState(jax.device_put(jnp.int32(step), replicated(mesh)), params, optimizer), position


def new_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step, born in its layout over the mesh."""
    layout = shardings(mesh, abstract_state(experiment))
    made = jax.jit(lambda key: unboxed(init_state(experiment, key)), out_shardings=layout)
    return made(jax.random.key(experiment.seed))


def _numbers(experiment: Experiment, mesh: Mesh, state: TrainState, epochs: Epochs) -> str:
    most = max(parts(experiment.mesh, batch_shares(mesh), bucket.rows, max(bucket.room)) for bucket in epochs.buckets)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    a_step = " and ".join(f"{n / len(epochs):,.0f} {side}" for n, side in zip(epochs.tokens, SIDES, strict=True))
    return (
        f"{parameters / 1e6:.1f} M parameters; {epochs.pairs:,} pairs in {len(epochs):,} batches an epoch, "
        f"{epochs.left_out:,} left out as too long; a step has {a_step} tokens on average, "
        f"{epochs.padding:.1%} padding, computed in {most} part(s) on {describe_devices(mesh)}"
    )


def share(experiment: Experiment, mesh: Mesh) -> Callable[[Bucket], np.ndarray]:
    """Which rows of a bucket's batches this process computes, in as many parts as they take."""

    def rows_of(bucket: Bucket) -> np.ndarray:
        number = parts(experiment.mesh, batch_shares(mesh), bucket.rows, max(bucket.room))
        return local_rows(mesh, number, bucket.rows)

    return rows_of


def _compile(
    experiment: Experiment, mesh: Mesh, state: TrainState, batches: TrainingBatches, accumulate: bool, say: Say
) -> tuple[Compiled, Experiment]:
    """The training step for the batch shape of each bucket; and the experiment as it fits into a device's memory.

    With `accumulate`, batches are computed in as many more parts as that takes.

    Raises:
        UserError: it does not fit; says what would.
    """
    buckets = batches.epochs.buckets
    names = ", ".join(f"{b.rows} x {b.room.source}|{b.room.target}" for b in buckets)
    say(f"compiling the training step for {len(buckets)} batch shapes ({names})")
    begin = time.monotonic()
    compiled = compiled_steps(experiment, mesh, state, batches)
    say(f"compiled in {time.monotonic() - begin:.0f} s")
    room = min((int(each) for each in distributed.exchange(str(memory.room(mesh)))), default=0)
    if not room:
        say("the memory of these devices is not known: whether a step fits will show")
    if not room or _needed(compiled) <= room:
        return compiled, experiment
    found = _fitting(experiment, mesh, state, batches, room)
    too_much = f"a training step needs {_gib(_needed(compiled))} on each device, which has {_gib(room)}"
    if not found:
        raise UserError(
            f"{too_much}, and too much in any number of parts; {_more_devices(state, _needed(compiled), room)}"
        )
    fits, smaller = found
    how = f"--mesh.tokens_per_device {smaller.mesh.tokens_per_device}"
    if not accumulate:
        raise UserError(f"{too_much}: {how} needs {_gib(_needed(fits))}, and --auto-accumulate chooses that itself")
    say(f"{too_much}: going on with {how}, more parts of the same batch, which needs {_gib(_needed(fits))}")
    return fits, smaller


def compiled_steps(experiment: Experiment, mesh: Mesh, state: TrainState, batches: TrainingBatches) -> Compiled:
    """The training step for each batch shape, by `shapes_of` its batches."""
    step = jitted_step(experiment, mesh, jax.tree.map(lambda x: x.sharding, state))
    batches = batches.shared(share(experiment, mesh))

    def compiled(batch: Batch) -> Any:
        with on(mesh):  # a mesh is set for one thread
            return step.lower(state, place(mesh, batch)).compile()

    empty = [batches.empty(bucket) for bucket in batches.epochs.buckets]
    with ThreadPoolExecutor(max_workers=1 if distributed.many() else 4) as pool:  # processes compile in one order
        return dict(zip(map(shapes_of, empty), pool.map(compiled, empty), strict=True))


def _fitting(
    experiment: Experiment, mesh: Mesh, state: TrainState, batches: TrainingBatches, room: int
) -> tuple[Compiled, Experiment] | None:
    """The step in the fewest parts, by doubling, that need at most `room` bytes; None if a row a part is too much."""
    buckets = batches.epochs.buckets
    tokens = max(-(-b.rows * max(b.room) // batch_shares(mesh)) for b in buckets)
    while (tokens := tokens // 2) >= max(batches.epochs.buckets[-1].room):
        smaller = override(experiment, {"mesh.tokens_per_device": tokens})
        compiled = compiled_steps(smaller, mesh, state, batches)
        if _needed(compiled) <= room:
            return compiled, smaller
    return None


def _needed(compiled: Compiled) -> int:
    """Bytes that a device needs for the largest of these steps, by XLA's analysis."""
    return max(memory.needed(step) for step in compiled.values())


def _more_devices(state: TrainState, needed: int, room: int) -> str:
    """Over how many devices parameters and optimizer state must be split at least."""
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    shares = next((n for n in (2**i for i in range(1, 13)) if needed - held + held / n <= room), None)
    kept = f"parameters and optimizer state are {_gib(held)} of it"
    return f"{kept}: --mesh.fsdp {shares} times as large would split them (an estimate)" if shares else kept


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def jitted_step(experiment: Experiment, mesh: Mesh, layout: TrainState) -> Any:
    """The training step for a state laid out by `layout`, whose memory the new state takes over; to be lowered.

    Raises:
        UserError: the model's attention does not take rows of several sentences on this mesh.
    """
    kernel, platform = getattr(experiment.model, "attention", ""), mesh.devices.flat[0].platform
    check_rows(kernel, platform, experiment.batching.packed, experiment.batching.max_length)
    return jax.jit(
        functools.partial(train_step, experiment), donate_argnums=0, out_shardings=(layout, replicated(mesh))
    )


def shapes_of(batch: Batch) -> tuple[Shape, Shape]:
    """Rows and length of both sides: what a compiled step is known by."""
    return batch.source.tokens.shape, batch.target.tokens.shape


def _rate(experiment: Experiment, step: int) -> float:
    return float(experiment.optimizer.rate(step, experiment.model.d_model))


# ------------------------------------------------------------------------------ Signals


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that holds the signal after SIGTERM or SIGINT came. A second one ends the process as usual."""
    came: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        for number in before:
            signal.signal(number, note)
    try:
        yield came
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
