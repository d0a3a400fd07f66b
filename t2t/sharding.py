"""How arrays are laid out over devices.

Every array axis in t2t has a one-letter name, the same letter in einsums, docstrings and here:

    N layers   B batch   T query length   S key length   D d_model   F d_ff
    H heads    k d_k     v d_v            V vocabulary   P parts of a batch
    K beam     W kernel of a convolution        C what goes into one: F, whole on a device
    G gates of a recurrent cell, or the two halves that a gated unit multiplies

In the cache of decoding `T` are its places, of which a token of each hypothesis takes one.

The model says what its axes are; the two tables below say over which axes of the mesh each letter is split.
Nothing else in the codebase mentions a mesh axis.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t2t import distributed
from t2t.errors import UserError
from t2t.knobs import Count, Range

Item = TypeVar("Item")
Result = TypeVar("Result")
Layout = dict[str, str | tuple[str, ...] | None]

PARAMETERS: Layout = {
    "N": None,
    "T": None,
    "D": "fsdp",
    "C": "fsdp",
    "W": None,
    "G": None,
    "H": "model",
    "F": "model",
    "V": "model",
    "k": None,
    "v": None,
}
ACTIVATIONS: Layout = {
    "N": None,
    "P": None,
    "B": ("data", "fsdp"),
    "K": None,
    "T": None,
    "S": None,
    "D": None,
    "C": None,
    "W": None,
    "G": None,
    "H": "model",
    "F": "model",
    "V": "model",
    "k": None,
    "v": None,
}
AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The grid that devices are arranged in. One device is the grid 1 x 1 x 1."""

    data: Annotated[int, Range(low=-1)] = -1  # devices over which the batch is split; -1: all that there are
    fsdp: Count = 1  # devices over which parameters, optimizer state and the batch are split
    model: Count = 1  # devices over which heads, d_ff, cells and the vocabulary are split
    tokens_per_device: Count = 4096  # of a side, that a device computes at a time; a larger batch is computed in parts
    logits_per_device: Count = 4096  # target positions whose logits are in a device's memory at a time


def devices() -> list[Any]:
    """All devices of the platform JAX chose.

    Raises:
        UserError: the platform asked for (JAX_PLATFORMS) is not there.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = jax.config.values.get("jax_platforms")
        reason = (str(error).splitlines() or ["JAX has no plugin for it"])[0]
        raise UserError(f"no device of platform {wanted!r} here (JAX_PLATFORMS): {reason}") from None


def make_mesh(config: MeshConfig) -> Mesh:
    """Arranges the first devices into the (data, fsdp, model) grid that `config` asks for.

    Raises:
        UserError: there are fewer devices than that, or some are left over by -1 or where there are many processes.
    """
    here, inner = devices(), config.fsdp * config.model
    asked = f"--mesh.data {config.data} x --mesh.fsdp {config.fsdp} x --mesh.model {config.model}"
    if config.data == 0 or (config.data == -1 and len(here) % inner):
        raise UserError(f"{asked} does not divide the {len(here)} {here[0].platform} device(s) here")
    shape = (len(here) // inner if config.data == -1 else config.data, config.fsdp, config.model)
    if (size := math.prod(shape)) > len(here):
        raise UserError(f"{asked} needs {size} devices; there are {len(here)} here ({here[0].platform})")
    if size < len(here) and distributed.many():
        raise UserError(f"{asked} leaves out some of the {len(here)} devices of this run's processes")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=here[:size])


_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Inside, in this thread, JAX, `constrain` and `on_mesh` lay arrays out over `mesh`."""
    token = _mesh.set(mesh)  # JAX before 0.8 does not say which devices its mesh has
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _mesh.reset(token)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """work(item) of each, in order, in so many threads, in which the mesh that is set here is set too."""
    if threads == 1:
        yield from map(work, items)
        return
    mesh = _mesh.get()

    def there(item: Item) -> Result:
        with contextlib.nullcontext() if mesh is None else on(mesh):
            return work(item)

    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(there, item) for item in items]
        try:
            yield from (each.result() for each in waiting)
        finally:
            for each in waiting:
                each.cancel()


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The grid without its devices, which need not be here; -1 is as many as are here, at least one.

    Raises:
        UserError: it has no devices.
    """
    if config.data == 0:
        raise UserError("--mesh.data is -1 or at least 1, not 0")
    inner = config.fsdp * config.model
    data = max(1, len(devices()) // inner) if config.data == -1 else config.data
    return AbstractMesh((data, config.fsdp, config.model), AXES, axis_types=(AxisType.Auto,) * 3)


def spec(axes: str, layout: Layout) -> PartitionSpec:
    """Where the axes named by `axes`, such as "BTD", go under `layout`.

    Raises:
        ValueError: a letter has no rule.
    """
    if missing := [a for a in axes if a not in layout]:
        raise ValueError(f"no rule for axis {missing} of {axes!r}; known: {' '.join(layout)}")
    return PartitionSpec(*(layout[a] for a in axes))


def named(init: Callable[..., jax.Array], axes: str) -> Callable[..., Any]:
    """Wraps an initializer so that its parameter knows its layout; a letter without a rule fails here."""
    return nn.with_partitioning(init, tuple(spec(axes, PARAMETERS)))


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Pins an activation to its layout; outside our mesh (a test, a pmap) it does nothing."""
    if jax.sharding.get_abstract_mesh().axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, ACTIVATIONS))


def by_heads(function: Callable[..., jax.Array], inputs: tuple[str, ...], output: str) -> Callable[..., jax.Array]:
    """`function` run by every device of our mesh on its own rows and heads, for what XLA cannot split by itself.

    The letters of its arguments and of its result say how they are split; outside our mesh it is `function`.
    """
    if jax.sharding.get_abstract_mesh().axis_names != AXES:
        return function
    specs = tuple(spec(axes, ACTIVATIONS) for axes in inputs)
    return jax.shard_map(function, in_specs=specs, out_specs=spec(output, ACTIVATIONS), check_vma=False)


def shardings(mesh: Mesh | AbstractMesh, abstract: Any) -> Any:
    """Where every leaf of an abstract state lives: as its letters say, or whole on every device."""
    return jax.tree.map(lambda p: NamedSharding(mesh, p), nn.get_partition_spec(abstract))


def check_layout(mesh: Mesh | AbstractMesh, abstract: Any) -> None:
    """Holds every boxed parameter against the mesh.

    Raises:
        UserError: an axis is split over more devices than its size divides by; names parameter and size.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        for size, axis in zip(leaf.value.shape, leaf.names, strict=True) if isinstance(leaf, nn.Partitioned) else ():
            if axis and size % mesh.shape[axis]:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(f"--mesh.{axis} {mesh.shape[axis]} does not divide an axis of {size} of {where}")


def unboxed(tree: Any) -> Any:
    """Boxed parameters as plain arrays, or as their shapes."""
    boxed = lambda leaf: isinstance(leaf, nn.Partitioned)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.value if boxed(leaf) else leaf, tree, is_leaf=boxed)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parts(config: MeshConfig, sharing: int, rows: int, length: int) -> int:
    """In how many parts, one after the other, `sharing` devices compute a batch of [rows length].

    The sum of the parts is the whole batch: how many devices there are changes neither the step nor the schedule.
    """
    return min(rows, -(-rows * length // (sharing * config.tokens_per_device)))


def batch_shares(mesh: Mesh | AbstractMesh) -> int:
    """Devices over which the rows of a batch are split."""
    return _shares(mesh, "B")


def _shares(mesh: Mesh | AbstractMesh, letter: str) -> int:
    axes = ACTIVATIONS[letter] or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def local_rows(mesh: Mesh, parts: int, rows: int) -> np.ndarray:
    """The rows of a batch of `rows` that this process's devices compute, [P rows/P]: their numbers in the whole batch.

    Part p has the rows from p B/P on. Rows that do not divide over parts and devices are filled up with numbers beyond
    `rows`, which stand for padding.
    """
    a_part = -(-rows // (parts * batch_shares(mesh))) * batch_shares(mesh)
    held = by_rows(mesh, "PB").addressable_devices_indices_map((parts, a_part)).values()
    own = np.unique(np.concatenate([np.arange(a_part)[index[1]] for index in held if index is not None]))
    return np.arange(parts)[:, None] * a_part + own


def place(mesh: Mesh, batch: Any) -> Any:
    """Puts a batch on the mesh: of arrays [B ...], or [P B ...] in P parts, the rows that this process computes.

    See `local_rows`. `batch` is a pytree of two axes and more an array for parts: tokens [P B T].
    """
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(by_rows(mesh, "PB" if x.ndim == 3 else "B"), x), batch
    )


def on_mesh(arrays: Any) -> Any:
    """NumPy arrays [B ...] that every process has whole, their rows split over the mesh that is set; else as they are.

    Rows that do not divide over it are filled up with zeros (padding).
    """
    mesh = _mesh.get()
    if mesh is None:
        return arrays

    def split(x: np.ndarray) -> jax.Array:
        x = np.pad(x, [(0, -len(x) % batch_shares(mesh))] + [(0, 0)] * (x.ndim - 1))
        return jax.make_array_from_callback(x.shape, by_rows(mesh, "B"), x.__getitem__)

    return jax.tree.map(split, arrays)


def shares(letter: str) -> int:
    """Over how many devices of the mesh that is set here an activation's axis is split."""
    mesh = _mesh.get()
    return 1 if mesh is None else _shares(mesh, letter)


def row_shares() -> int:
    """Over how many devices `on_mesh` splits rows."""
    return shares("B")


def gather(arrays: Any) -> Any:
    """The whole of arrays as NumPy's, in every process, wherever their parts lie."""

    def whole(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(process_allgather(x, tiled=True))

    return jax.tree.map(whole, arrays)


def by_rows(mesh: Mesh | AbstractMesh, axes: str) -> NamedSharding:
    """Arrays that begin with `axes`: rows `B` split over the devices that share the batch."""
    return NamedSharding(mesh, spec(axes, ACTIVATIONS))
