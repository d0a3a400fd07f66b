"""Checkpoints by Orbax: saved in the background, whole or not at all; restored, and averaged (section 6.1).

A checkpoint has three items: `params`, `optimizer` and `position` (where the data and the log stand), so that decoding
and averaging read the weights alone.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from t2t.batch import Sequences
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.sharding import devices, unboxed

# Orbax warns that a folder opened for reading is read-only; what goes wrong it raises.
logging.getLogger("absl").setLevel(logging.ERROR)


def writer(folder: Path, keep: int) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints of a run in training; it keeps the last `keep`."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def reader(folder: Path) -> ocp.CheckpointManager:
    """One that changes nothing: a run may be in training while it is read."""
    return ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(read_only=True, create=False))


def save_params(folder: Path, step: int, params: Any) -> None:
    """A checkpoint of weights alone: enough to decode, not to go on training."""
    with writer(folder, keep=1) as checkpoints:
        checkpoints.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))


def save(checkpoints: ocp.CheckpointManager, step: int, params: Any, optimizer: Any, position: dict[str, Any]) -> None:
    """Begins to save; the next save, or closing the manager, waits for it to end."""
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        optimizer=ocp.args.StandardSave(optimizer),
        position=ocp.args.JsonSave(position),
    )
    checkpoints.save(step, args=items)


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
    found = _read(checkpoints, step, items)
    return found["params"], found["optimizer"], found["position"]


def _read(checkpoints: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> Any:
    try:
        return checkpoints.restore(step, args=items)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot read the checkpoint {Path(checkpoints.directory) / str(step)}: {reason}") from None


def abstract_params(experiment: Experiment) -> Any:
    """Shapes and layout letters of the weights, boxed as Flax makes them; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 8), "int32")
    sequences = Sequences(tokens, tokens, tokens)
    return jax.eval_shape(experiment.model.build().init, jax.random.key(0), sequences, sequences)


def steps(folder: Path, experiment: Experiment) -> list[int]:
    """The checkpoints in `folder` that count for averages, by step, ascending: each `checkpoint_every`, and the last.

    One that was written because a signal came, or because an earlier part of the run ended there, does not count,
    unless checkpoints go by minutes: then all count.

    Raises:
        UserError: there is none.
    """
    found = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    if not found:
        raise UserError(f"no checkpoint in {folder}: train first")
    every = 1 if experiment.checkpoint_minutes else experiment.checkpoint_every
    return [step for step in found if step % every == 0 or step == found[-1]]


def load_params(folder: Path, experiment: Experiment, average: int = 1) -> tuple[Any, list[int]]:
    """The weights of the last checkpoint, or the plain mean of those of the last `average`, and the steps they are of.

    Raises:
        UserError: fewer checkpoints than `average`, or one that cannot be read.
    """
    there = steps(folder, experiment)
    if len(there) < average:
        raise UserError(f"{folder} has {len(there)} checkpoint(s), too few to average {average}")
    chosen = there[-average:]
    one = jax.sharding.SingleDeviceSharding(devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), unboxed(abstract_params(experiment))
    )
    with reader(folder) as checkpoints:
        total = None
        for step in chosen:
            params = _read(checkpoints, step, ocp.args.Composite(params=ocp.args.StandardRestore(shapes)))["params"]
            total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda x: x / len(chosen), total), chosen
