"""What an experiment costs, before it runs: parameters, FLOPs, memory and hours, from shapes alone.

The training step is traced on arrays that have a shape and no content: nothing is computed, nothing compiled, and the
devices that it is meant for need not be here. No data is read either: a batch is taken to be full of sentences of
LENGTH tokens, on both sides (texts without sources: on one), without padding. Only attention costs more a token where
sentences are longer.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from t2t import checkpoint
from t2t.batch import Batch, Sequences
from t2t.experiment import Experiment, override, with_attention
from t2t.loss import slices
from t2t.sharding import (
    ACTIVATIONS,
    abstract_mesh,
    batch_shares,
    by_rows,
    check_layout,
    make_mesh,
    on,
    parts,
    shardings,
    spec,
    unboxed,
)
from t2t.train import TrainState, abstract_state, jitted_step, train_step

LENGTH = 32  # tokens of a typical sentence, EOS counted; --batching.max_length where that is less
P100S = 8  # devices that the paper trained on (section 5.2)
P100_RATE = 9.5e12  # FLOP/s that the paper takes one of them to sustain in single precision (section 6.1)

# Primitives that move or name data.
_MOVES = re.compile(
    "broadcast_in_dim|broadcast_to|tile|reshape|squeeze|transpose|rev|pad|slice|dynamic_slice|dynamic_update_slice|split|"
    "concatenate|stack|unstack|gather|scatter|get|swap|iota|empty|copy|device_put|bitcast_convert_type|stop_gradient|name|"
    "optimization_barrier|sharding_constraint|random_wrap|random_unwrap|random_clone"
)
# Those that XLA counts apart from FLOPs.
_TRANSCENDENTAL = re.compile("exp2?|expm1|log|log1p|r?sqrt|cbrt|pow|logistic|tanh|sin|cos|tan|atan2|erf")


def cost(experiment: Experiment, rate: float | None, watts: float | None = None) -> dict[str, Any]:
    """All that is known before a run, as JSON has it; `rate` is what one device sustains, in TFLOP/s, `watts` it draws.

    `flops_per_step` are those of `flops`, `memory_per_device` those of `memory` (bytes), `hours` the time at that rate
    and `kilowatt_hours` what is drawn in that time, on all devices of the mesh. `train_flops_paper` is None where the
    paper gives no time, `hours` where nobody gives a rate, `kilowatt_hours` where nobody gives both.

    Raises:
        UserError: the mesh does not divide a parameter.
    """
    dense = with_attention(experiment, "dense")
    mesh, state, batch = abstract_mesh(experiment.mesh), abstract_state(dense), abstract_batch(experiment)
    check_layout(mesh, state.params)
    # What a slice of logits, or a block of attention, makes again to save memory is no work that the model asks for.
    whole = override(dense, {"mesh.logits_per_device": batch.target.tokens.size})
    step = jax.make_jaxpr(functools.partial(train_step, whole))(unboxed(state), batch)
    per_step = flops(step.jaxpr)
    total = per_step * experiment.train_steps
    device_hours = total / (rate * 1e12) / 3600 if rate else None
    return {
        "experiment": experiment.name,
        "batch": {"rows": batch.target.tokens.shape[0], "length": batch.target.tokens.shape[1]},
        "parameters": _numbers(state.params),
        "flops_per_token": per_step / batch.target.tokens.size,
        "flops_per_step": per_step,
        "train_steps": experiment.train_steps,
        "train_flops": total,
        "train_flops_paper": paper_flops(experiment.paper.hours),
        "devices": mesh.size,
        "parts": abstract_parts(experiment, mesh)[0],
        "memory_per_device": memory(experiment, mesh, state),
        "rate": rate,
        "hours": device_hours and device_hours / mesh.size,
        "watts": watts,
        "kilowatt_hours": device_hours * watts / 1000 if device_hours and watts else None,
    }


def paper_flops(hours: float | None) -> float | None:
    """Section 6.1: training time x devices x the rate that they sustain; `hours` is the time on the paper's devices."""
    return None if hours is None else hours * 3600 * P100S * P100_RATE


# ------------------------------------------------------------------------------ The step, in shapes


def parameters(experiment: Experiment) -> int:
    """How many numbers are learned."""
    return _numbers(checkpoint.abstract_params(experiment))


def _numbers(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def abstract_batch(experiment: Experiment, shares: int = 1) -> Batch:
    """The batch that is counted, [rows LENGTH] on both sides: as many rows as --batching.tokens has room for.

    As in training, rows that do not divide into `shares` are filled up, and what has no sources has none: [rows 0].
    """
    length = min(LENGTH, experiment.batching.max_length)
    sentences = max(1, experiment.batching.tokens // length)
    rows = sentences + -sentences % shares
    lengths = (length if experiment.task.has_sources else 0, length)
    sides = (jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in lengths)
    return Batch(*(Sequences(side, side, side) for side in sides))


def abstract_parts(experiment: Experiment, mesh: Mesh | AbstractMesh) -> tuple[int, Batch]:
    """In how many parts the mesh computes the batch, and one part, its rows split over the mesh."""
    shares = batch_shares(mesh)
    number = parts(experiment.mesh, shares, *abstract_batch(experiment).target.tokens.shape)
    whole = abstract_batch(experiment, shares * number)
    where = by_rows(mesh, "B")
    return number, jax.tree.map(lambda x: placed((x.shape[0] // number, *x.shape[1:]), x.dtype, where), whole)


def placed(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies on a mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


# ------------------------------------------------------------------------------ FLOPs


def flops(jaxpr: Jaxpr) -> int:
    """The arithmetic of a traced function, counted as XLA's cost analysis counts it.

    - A matrix product of [M K] and [K N] is 2 M N K, a convolution the same for each place.
    - An elementwise operation is one for each element of its result; so are those on integers (the hash that dropout
      draws by), comparisons, selections and conversions.
    - A reduction, or an addition at scattered places, is one for each element that goes in.
    - exp, log, powers and roots are none, nor is moving data.

    The body of a scan counts as often as it runs, the dearest branch of a choice, the body of any other loop once. What
    a kernel does that is not made of JAX's own operations cannot be seen, here or by XLA.
    """
    return sum(map(_flops, jaxpr.eqns))


def _flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    into, out = _shapes(equation.invars), _shapes(equation.outvars)
    if _MOVES.fullmatch(name) or _TRANSCENDENTAL.fullmatch(name):
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(out[0]) * math.prod(into[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(out[0]) * math.prod(into[1]) // into[1][features]
    if name.startswith(("reduce_", "arg")):
        return math.prod(into[0]) - math.prod(out[0])
    if name.startswith("scatter"):
        return math.prod(into[-1])
    inside = [flops(jaxpr) for jaxpr in _inside(params)]
    if not inside:
        return sum(map(math.prod, out))
    if name == "cond":
        return max(inside)
    return sum(inside) * (params["length"] if name == "scan" else 1)


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions among the parameters of a primitive."""
    for each in itertools.chain.from_iterable(x if isinstance(x, tuple | list) else [x] for x in params.values()):
        if isinstance(each, ClosedJaxpr | Jaxpr):
            yield each.jaxpr if isinstance(each, ClosedJaxpr) else each


def _shapes(variables: Iterable[Any]) -> list[tuple[int, ...]]:
    return [variable.aval.shape for variable in variables]


# ------------------------------------------------------------------------------ Memory


def memory(experiment: Experiment, mesh: AbstractMesh, state: TrainState) -> dict[str, int]:
    """Bytes that a step needs on each device, by what is in them: an estimate of what XLA will ask for.

    `parameters`, `optimizer_state` and `gradients` are split as their layout says. `activations` are what the model
    keeps of its forward pass for the backward pass, for the rows that one device has at a time; that heads and d_ff are
    split too is left out of account, which is too much where --mesh.model is above 1. `logits`, of one slice, are there
    twice: themselves and their gradient. So are the gradients where the batch is computed in parts: their sum, and a
    part's.
    """
    layout, (number, part) = shardings(mesh, state), abstract_parts(experiment, mesh)
    mine = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), part)
    if getattr(experiment.model, "attention", "") == "fused":  # which keeps what blocks keep
        experiment = with_attention(experiment, "blocked")
    logits, kept = forward(experiment, unboxed(state.params), mine)
    split = NamedSharding(mesh, spec("BTV", ACTIVATIONS)).shard_shape((*part.target.tokens.shape, logits.shape[-1]))
    number_of_slices = slices(split[0], split[1], experiment.mesh.logits_per_device)
    parameters = _bytes(unboxed(state.params), layout.params)
    items = {
        "parameters": parameters,
        "optimizer_state": _bytes(unboxed(state.optimizer), layout.optimizer),
        "gradients": parameters * min(number, 2),
        "activations": sum(math.prod(x.shape) * x.dtype.itemsize for x in kept),
        "logits": 2 * math.prod(split) * logits.dtype.itemsize // number_of_slices,
    }
    return {**items, "total": sum(items.values())}


def forward(experiment: Experiment, params: Any, batch: Batch) -> tuple[jax.ShapeDtypeStruct, list[Any]]:
    """Shapes of the logits, and of what the model's forward pass keeps for the backward pass beside the weights."""
    model: Any = experiment.model.build()

    def run(params: Any, batch: Batch) -> Any:
        def logits(params: Any) -> jax.Array:
            rngs = {"dropout": jax.random.key(experiment.seed)}
            return model.apply(params, batch.source, batch.target, train=True, rngs=rngs)

        return jax.vjp(logits, params)

    traced, (logits, _) = jax.make_jaxpr(run, return_shape=True)(params, batch)
    _, *kept = traced.jaxpr.outvars
    distinct = {x for x in kept if isinstance(x, Var)}.difference(traced.jaxpr.invars)
    return logits, [x.aval for x in distinct]


def _bytes(tree: Any, layout: Any) -> int:
    """What one device has of a tree of arrays."""
    sizes = jax.tree.map(lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, tree, layout)
    return sum(jax.tree.leaves(sizes))


# ------------------------------------------------------------------------------ XLA's own figures


def compiled(experiment: Experiment) -> dict[str, Any]:
    """What XLA says of the training step once it is compiled for the mesh, of one device's part of it.

    `xla_flops` counts the body of a loop once: where `--model.unroll` is N there is no loop over layers, where
    `--mesh.tokens_per_device` is as large as a device's share of a batch none over its parts. `xla_memory`
    is in bytes: `outputs` are those that do not overwrite an argument, `temporaries` what lives within the step.

    Raises:
        UserError: the devices are not here, or the mesh does not divide a parameter.
    """
    mesh, boxed = make_mesh(experiment.mesh), abstract_state(experiment)
    check_layout(mesh, boxed.params)
    layout = shardings(mesh, boxed)

    state = jax.tree.map(lambda x, where: placed(x.shape, x.dtype, where), unboxed(boxed), layout)
    number, batch = abstract_parts(experiment, mesh)
    if number > 1:
        where = by_rows(mesh, "PB")
        batch = jax.tree.map(lambda x: placed((number, *x.shape), x.dtype, where), batch)
    step = jitted_step(experiment, mesh, layout)
    with on(mesh):
        found: Any = step.lower(state, batch).compile()
    sizes = found.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    return {"xla_flops": found.cost_analysis()["flops"], "xla_memory": {**memory, "total": sum(memory.values())}}


# ------------------------------------------------------------------------------ In words


def table(found: dict[str, Any]) -> str:
    """What `cost` found, and `compiled` if it was asked, in lines of name, number and remark."""
    size, devices, rate, memory = (found[name] for name in ("batch", "devices", "rate", "memory_per_device"))
    hours, paper, energy = found["hours"], found["train_flops_paper"], found["kilowatt_hours"]
    lines = [
        ("parameters", f"{found['parameters']:,}", ""),
        ("FLOPs per target token", short(found["flops_per_token"]), ""),
        ("FLOPs per step", short(found["flops_per_step"]), f"{size['rows']:,} x {size['length']} tokens on each side"),
        ("FLOPs of training", short(found["train_flops"]), f"{found['train_steps']:,} steps"),
        (
            "as the paper counts",
            short(paper) if paper else "-",
            f"its hours x {P100S} P100s x {P100_RATE / 1e12:g} TFLOP/s" if paper else "the paper gives no time for it",
        ),
        (
            "hours",
            f"{hours:,.2f}" if rate else "-",
            f"at {rate:g} TFLOP/s x {devices:,} device(s)" if rate else "give --rate, TFLOP/s that a device sustains",
        ),
        *([("kWh", f"{energy:,.2f}", f"at {found['watts']:g} W a device")] if energy else []),
        (
            "memory per device",
            _megabytes(memory["total"]),
            f"an estimate, for {devices:,} device(s), {found['parts']} part(s) a step",
        ),
        *_items(memory),
    ]
    if "xla_flops" in found:
        lines += [
            ("XLA: FLOPs per step", short(found["xla_flops"]), "of one device; the body of a loop counts once"),
            ("XLA: memory per device", _megabytes(found["xla_memory"]["total"]), ""),
            *_items(found["xla_memory"]),
        ]
    names, numbers = (max(len(line[column]) for line in lines) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {number:>{numbers}}  {remark}".rstrip() for name, number, remark in lines)


def _items(memory: dict[str, int]) -> list[tuple[str, str, str]]:
    items = [(name, size) for name, size in memory.items() if name != "total"]
    return [(f"  {name.replace('_', ' ')}", _megabytes(size), "") for name, size in items]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def short(number: float) -> str:
    """As the paper writes FLOPs: 3.3e18."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
