"""Checkpoints by Orbax: saved in the background, whole or not at all; restored, and averaged (section 6.1).

A checkpoint has three items: `params`, `optimizer` and `position` (where the data and the log stand), so that decoding
and averaging read the weights alone.
"""

import contextlib
import functools
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from t2t import storage
from t2t.batch import Sequences
from t2t.errors import UserError
from t2t.experiment import Experiment, differences, with_attention
from t2t.optimizer import unbiased
from t2t.run import Run, ends
from t2t.sharding import devices, shardings, unboxed

# Orbax warns that a folder opened for reading is read-only; what goes wrong it raises, and need not log too.
logging.getLogger("absl").setLevel(logging.CRITICAL)

BROKEN = (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError)  # what Orbax raises for broken files
CLOSED = "Event loop is closed"  # what asyncio says to a read that ends after its reader


@contextlib.contextmanager
def writer(folder: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of the checkpoints of a run in training; it keeps the last `keep`.

    Its end waits for what is still being saved.

    Raises:
        UserError: that could not be written.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    with _writing(folder):
        checkpoints = ocp.CheckpointManager(storage.absolute(folder), options=options)
    with _quiet():
        try:
            yield checkpoints
        finally:
            with _writing(folder):
                checkpoints.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is under way when something fails need not say that nobody waits for it any more."""
    _quiet_threads()
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)  # and after an error never: what was under way ends later than whoever waited for it


@functools.cache
def _quiet_threads() -> None:
    """What Orbax's threads raise is raised again where it waits for them: they need not print it too.

    For good, as above.
    """
    of_threads, of_callbacks, of_nobody = threading.excepthook, sys.excepthook, sys.unraisablehook

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__module__.partition(".")[0] != "orbax":
            of_threads(args)

    def of_callback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if str(error) != CLOSED:
            of_callbacks(kind, error, where)

    def of_coroutine(args: "sys.UnraisableHookArgs") -> None:
        code = getattr(args.object, "cr_code", None)
        if str(args.exc_value) != CLOSED and not (code and f"{os.sep}orbax{os.sep}" in code.co_filename):
            of_nobody(args)

    threading.excepthook, sys.excepthook, sys.unraisablehook = of_thread, of_callback, of_coroutine


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # a device or another process, not the disk
    except (*BROKEN, *storage.errors()) as error:
        what = "cannot write a checkpoint; those before it are kept, and training goes on from the last"
        raise storage.failed(f"{folder}: {what}", error) from None


def set_aside(folder: Path, step: int, where: Path) -> list[int]:
    """Moves the checkpoints after `step` out of `folder`, into `where`; their steps.

    Raises:
        UserError: there is none of `step`, or they cannot be moved.
    """
    found = all_steps(folder)
    if step not in found:
        there = ", ".join(f"{each:,}" for each in found) or "none"
        raise UserError(f"--from-step {step}: {folder} has no checkpoint of that step; there is {there}")
    later = [each for each in found if each > step]
    for each in later:
        storage.set_aside(folder / str(each), where)
    return later


@contextlib.contextmanager
def reader(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """One that changes nothing: a run may be in training while it is read."""
    options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    with _quiet(), ocp.CheckpointManager(storage.absolute(folder), options=options) as checkpoints:
        yield checkpoints


def save_params(folder: Path, step: int, params: Any) -> None:
    """A checkpoint of weights alone: enough to decode, not to go on training."""
    with writer(folder, keep=1) as checkpoints:
        checkpoints.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))


def save(checkpoints: ocp.CheckpointManager, step: int, params: Any, optimizer: Any, position: dict[str, Any]) -> None:
    """Begins to save; the next save, or closing the manager, waits for it to end.

    Raises:
        UserError: this one cannot be written, or the one before could not.
    """
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        optimizer=ocp.args.StandardSave(optimizer),
        position=ocp.args.JsonSave(position),
    )
    folder = storage.folder(str(checkpoints.directory))
    _check_room(folder, sum(x.nbytes for x in jax.tree.leaves((params, optimizer))))
    with _writing(folder):
        checkpoints.save(step, args=items)


def _check_room(folder: Path, size: int) -> None:
    """Raises UserError when the disk has no room for a checkpoint of `size` bytes: better than half of one."""
    if not storage.remote(folder) and (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"cannot write a checkpoint to {folder}: it takes {size:,} bytes, {free:,} are free; those before it are "
            "kept, and training goes on from the last"
        )


def restore(
    checkpoints: ocp.CheckpointManager, step: int, params: Any, optimizer: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """The checkpoint at `step`, its arrays laid out like the given abstract ones.

    Raises:
        UserError: it cannot be read; names it.
    """
    items = ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        optimizer=ocp.args.StandardRestore(optimizer),
        position=ocp.args.JsonRestore(),
    )
    try:
        found = _read(checkpoints, step, items)
    except UserError as error:
        before = [each for each in all_steps(storage.folder(str(checkpoints.directory))) if each < step]
        hint = f"; --from-step {before[-1]} goes on from the one before" if before else ""
        raise type(error)(f"{error}{hint}") from None
    return found["params"], found["optimizer"], found["position"]


def _read(checkpoints: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> Any:
    try:
        return checkpoints.restore(step, args=items)
    except Exception as error:
        if type(error) is Exception and isinstance(error.__cause__, BROKEN):  # how Orbax says which array is broken
            error = error.__cause__
        if not isinstance(error, (*BROKEN, *storage.errors())):
            raise
        raise storage.failed(f"cannot read the checkpoint {checkpoints.directory / str(step)}", error) from None


def abstract_params(experiment: Experiment) -> Any:
    """Shapes and layout letters of the weights, boxed as Flax makes them; nothing is computed.

    Also where the kernel of the experiment's attention cannot run, which has no weights of its own.
    """
    model, tokens = with_attention(experiment, "dense").model.build(), jax.ShapeDtypeStruct((1, 8), "int32")
    sequences = Sequences(tokens, tokens, tokens)
    return jax.eval_shape(lambda *sides: model.init(jax.random.key(0), *sides), sequences, sequences)


def check_fits(there: Experiment, here: Experiment) -> None:
    """Raises UserError unless the model of `here` has weights of the same names and shapes as that of `there`."""
    shapes = [jax.tree.map(lambda x: x.shape, unboxed(abstract_params(each))) for each in (there, here)]
    if shapes[0] != shapes[1]:
        differing = differences(there.model, here.model).items()
        named = ", ".join(f"model.{path} is {before} there, {now} here" for path, (before, now) in differing)
        raise UserError(f"--init_from {here.init_from}: its weights do not fit: {named}")


def steps(run: Run, experiment: Experiment) -> list[int]:
    """The checkpoints of a run that count for averages, by step, ascending.

    One that was written because a signal came, or because an earlier part of the run ended there, does not count if
    `checkpoint_every` would not have written it too. Where checkpoints go by minutes all count.

    Raises:
        UserError: there is none.
    """
    if not (found := all_steps(run.checkpoints)):
        raise UserError(f"no checkpoint in {run.checkpoints}: train first")
    passed = _passed(found, run, experiment)
    return [step for step in found if step not in passed]


def _passed(found: list[int], run: Run, experiment: Experiment) -> list[int]:
    if experiment.checkpoint_minutes:
        return []
    ended = ends(run)
    return [step for step in found[:-1] if step in ended and step % experiment.checkpoint_every != 0]


def remove_passed(checkpoints: ocp.CheckpointManager, run: Run, experiment: Experiment) -> list[int]:
    """Removes the checkpoints that do not count, which would else take the places of some that do; their steps.

    To be called in each process of a run.
    """
    passed = _passed(sorted(checkpoints.all_steps()), run, experiment)
    with _writing(run.checkpoints):
        for step in passed:
            checkpoints.delete(step)
    return passed


def all_steps(folder: Path) -> list[int]:
    """All checkpoints in `folder`, ascending."""
    found = [path for path in storage.content(folder) if path.name.isdigit()] if folder.is_dir() else []
    if storage.remote(folder):  # where nothing can be renamed, Orbax marks in another way what is whole
        found = [path for path in found if ocp.utils.is_checkpoint_finalized(path)]
    return sorted(int(path.name) for path in found)


def load_params(run: Run, experiment: Experiment, average: int = 1, mesh: Mesh | None = None) -> tuple[Any, list[int]]:
    """The weights of the last checkpoint, or the plain mean of those of the last `average`, and the steps they are of.

    They are laid out over `mesh`; without one they are on the first device.

    Raises:
        UserError: fewer checkpoints than `average`, or one that cannot be read.
    """
    there = steps(run, experiment)
    if len(there) < average:
        raise UserError(f"{run.checkpoints} has {len(there)} checkpoint(s), too few to average {average}")
    chosen = there[-average:]
    shapes = _laid_out(abstract_params(experiment), mesh)
    with reader(run.checkpoints) as checkpoints:
        total = None
        for step in chosen:
            params = _read(checkpoints, step, ocp.args.Composite(params=ocp.args.StandardRestore(shapes)))["params"]
            total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda x: x / len(chosen), total), chosen


def described(steps: list[int]) -> str:
    """Which weights these are, in words, by the steps of the checkpoints that they are the mean of."""
    return f"mean of {len(steps)} checkpoints up to step {steps[-1]:,}" if len(steps) > 1 else f"step {steps[0]:,}"


def load_moving_mean(run: Run, experiment: Experiment) -> tuple[Any, list[int]]:
    """The moving mean of the weights that training kept (--optimizer.ema), and the step of the checkpoint it is in.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not experiment.optimizer.ema:
        raise UserError(f"{run.folder} has no moving mean of the weights: it was trained without --optimizer.ema")
    step = steps(run, experiment)[-1]
    optimizer = experiment.optimizer.build(experiment.model.d_model)
    shapes = _laid_out(jax.eval_shape(optimizer.init, abstract_params(experiment)), None)
    with reader(run.checkpoints) as checkpoints:
        found = _read(checkpoints, step, ocp.args.Composite(optimizer=ocp.args.StandardRestore(shapes)))["optimizer"]
    return unbiased(found[-1], experiment.optimizer.ema, step), [step]


def _laid_out(abstract: Any, mesh: Mesh | None) -> Any:
    """Shapes as their letters lay them out over a mesh, or else on the first device."""
    one = jax.sharding.SingleDeviceSharding(devices()[0])
    layout = shardings(mesh, abstract) if mesh else jax.tree.map(lambda _: one, unboxed(abstract))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), unboxed(abstract), layout
    )
