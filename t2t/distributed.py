"""Many processes, one run: how they find one another, agree, and part.

Each process runs the same command; together their devices are the mesh. What they must agree on goes through here;
process 0, the first, alone writes the run folder and speaks.
"""

import contextlib
import hashlib
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from t2t.errors import Passing, UserError

HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost; JAX's default is 100
LOST = 75  # exit code, as after a signal: the same command goes on
LONGEST = 2000  # bytes of a message that processes exchange
PASSING, LASTING = "~", "!"  # how an error begins that they exchange


def join() -> None:
    """Joins the processes that the cluster started: SLURM, Open MPI, a TPU slice, Kubernetes, all by JAX's detection.

    Or those that the environment names: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Must come before anything else asks JAX for devices.

    Raises:
        UserError: there is no such cluster, or a variable is no number. Where the others do not come JAX ends the
            process, after five minutes.
    """
    number, of = _number("JAX_PROCESS_ID"), _number("JAX_NUM_PROCESSES")
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT}
    if "shutdown_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:  # since JAX 0.8
        patience["shutdown_timeout_seconds"] = HEARTBEAT
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # JAX's default on CPUs knows one process only
    # Programs that run side by side on a CPU may each hold some of the threads that the other waits for.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(process_id=number, num_processes=of, **patience)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"--distributed: the processes do not find one another: {reason} (a cluster that JAX knows starts them, "
            "or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them)"
        ) from None


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise UserError(f"{variable} is a whole number, not {text!r}")
    return None if text is None else int(text)


def many() -> bool:
    """Whether there are other processes than this one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is done inside succeeds in all processes, or raises UserError in all: otherwise the others would wait."""
    message, kind = "", ""
    try:
        yield
    except UserError as error:
        if not many():
            raise
        message, kind = str(error) or "failed", PASSING if isinstance(error, Passing) else LASTING
    if many() and (found := [said for said in exchange(kind + message) if said]):
        raised = Passing if all(said.startswith(PASSING) for said in found) else UserError
        raise raised(message or f"another process: {found[0][1:]}")


def exchange(message: str) -> list[str]:
    """What each process says, in order; all must ask."""
    if not many():
        return [message]
    said = np.zeros(LONGEST, np.uint8)
    encoded = message.encode()[:LONGEST]
    said[: len(encoded)] = list(encoded)
    every = np.asarray(process_allgather(said))
    return [bytes(row[row != 0]).decode(errors="ignore") for row in every]


@contextlib.contextmanager
def lost_others(folder: object) -> Iterator[None]:
    """Ends this process with code 75 when what is done inside fails because another process of the run is gone.

    At once, as what Python does at its end would wait for the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not many():
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        print(
            f"t2t: {folder}: another process of this run ended or cannot be reached ({reason}); start all of them "
            "again with the same command (without --from-step), which goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)


def check_equal(what: str, value: str) -> None:
    """Raises UserError in all processes unless `value`, which describes `what`, is the same in all."""
    if len({*exchange(hashlib.sha256(value.encode()).hexdigest())}) > 1:
        raise UserError(f"the processes of this run have not the same {what}: start each with the same command")


class Agreement:
    """What any process wants, such as to stop: all learn of it after the same step, and no step waits for it.

    The answer of a step is read when the next one is under way.
    """

    def __init__(self, mesh: jax.sharding.Mesh, questions: int) -> None:
        self._where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda flags: flags.any(0), out_shardings=jax.sharding.NamedSharding(mesh, _WHOLE))
        self._asked: Any = None
        self._shape = mesh.size, questions

    def reached(self, *wanted: bool) -> tuple[bool, ...]:
        """To be called once a step by each process, with what it wants; what any wanted.

        After a step at which anything was wanted, all ask anew: what is wanted still is wanted then.
        """
        if not many():
            return wanted
        flags = jax.make_array_from_callback(self._shape, self._where, lambda _: np.array([wanted]))
        before, self._asked = self._asked, self._any(flags)
        if before is None:
            return (False,) * len(wanted)
        found = tuple(np.asarray(before).tolist())
        if any(found):  # what was asked with this step was asked before the answer was known
            self._asked = None
        return found


_WHOLE = jax.sharding.PartitionSpec()
