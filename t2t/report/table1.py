"""Table 1, measured: what each kind of layer costs by the length n of a sequence and by its width d, forward and back.

A layer takes n vectors of width d to as many others (section 4), here those of one sequence. As in the paper's column,
self-attention is equation (1) alone; with the projections around it, which the paper does not count, it is a row of its
own. What grows as a power of n or d is a line where both axes are logarithmic: its slope, by least squares over the
largest sizes, stands beside the power that the paper gives.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2t import cost
from t2t.errors import UserError
from t2t.knobs import Count, read
from t2t.models import attention
from t2t.models.attention import Mask
from t2t.models.convolutional import ConvolutionalConfig, GatedConvolution, neighbours, window
from t2t.models.recurrent import LSTM, RecurrentConfig
from t2t.models.transformer import MultiHeadAttention, TransformerConfig
from t2t.report import columns
from t2t.report.charts import Panel, picture
from t2t.sharding import MeshConfig, make_mesh, unboxed
from t2t.train import describe_devices

Say = Callable[[str], None]
LENGTHS, WIDTHS = "128,256,512,1024,2048,4096", "64,128,256,512,1024"
D_K = 64  # d_k: width of a head, as in base and big; heads are as many as that makes, one in narrower layers
KERNEL = 3  # k: positions that a convolution sees, as in ConvS2S
SPAN = 64  # r: neighbourhood of restricted self-attention
LARGEST = 3  # sizes that a power is fitted to
LEAST, MOST = 5, 50  # times that a layer is run
SECONDS = 0.5  # after which, and LEAST times, it is not run again
DTYPE = {"cpu": "float32"}  # elsewhere bfloat16, which fused attention needs


class Paper(NamedTuple):
    """A row of Table 1; `n` and `d` are the powers in its first column."""

    complexity: str  # per layer
    sequential: str  # operations one after the other
    path: str  # longest, between any two positions
    n: int
    d: int


PAPER = {
    "Self-Attention": Paper("O(n²·d)", "O(1)", "O(1)", 2, 1),
    "Recurrent": Paper("O(n·d²)", "O(n)", "O(n)", 1, 2),
    "Convolutional": Paper("O(k·n·d²)", "O(1)", "O(log_k(n))", 1, 2),
    "Self-Attention (restricted)": Paper("O(r·n·d)", "O(1)", "O(n/r)", 1, 1),
}


class Layer(NamedTuple):
    """A function of weights and inputs, and the shapes of both."""

    function: Callable[[Any, Any], jax.Array]
    weights: Any
    inputs: Any


# ------------------------------------------------------------------------------ The layers


def self_attention(kernel: str, span: int = 0) -> Callable[[int, int, Any], Layer]:
    """Equation (1) over all heads, computed by `kernel` (see `attention.attend`), restricted if there is a span."""

    def made(n: int, d: int, dtype: Any) -> Layer:
        heads, d_k = _heads(d)
        mask = _mask(n, span)
        inputs = [jax.ShapeDtypeStruct((1, n, heads, d_k), dtype)] * 3
        return Layer(lambda _, x: attention.attend(kernel, x[0], x[1], x[2], mask), (), inputs)

    return made


def with_projections(n: int, d: int, dtype: Any) -> Layer:
    """3.2.2: the same between its four products of matrices."""
    heads, d_k = _heads(d)
    config = TransformerConfig(d_model=d, num_heads=heads, d_k=d_k, d_v=d_k, dtype=dtype)
    layer, mask = MultiHeadAttention(config), _mask(n)

    def over(module: MultiHeadAttention, x: jax.Array) -> jax.Array:
        return module(x, *module.keys_and_values(x), mask)

    return _of_module(layer, over, n, d, dtype)


def recurrent(n: int, d: int, dtype: Any) -> Layer:
    """Cells of an LSTM, in one direction."""
    layer = LSTM(RecurrentConfig(d_model=d, dtype=dtype), d)
    return _of_module(layer, lambda module, x: module(x, jnp.ones((1, n), jnp.int32)), n, d, dtype)


def convolutional(n: int, d: int, dtype: Any) -> Layer:
    """A convolution over k positions and its gate, which doubles what it computes."""
    config = ConvolutionalConfig(d_hidden=d, kernel_width=KERNEL, p_drop=0.0, dtype=dtype)
    near = neighbours(jnp.ones((1, n), jnp.int32), KERNEL, KERNEL // 2)
    layer = GatedConvolution(config)
    return _of_module(layer, lambda module, x: module(window(x, near, KERNEL // 2)), n, d, dtype)


def _of_module(layer: nn.Module, call: Callable[..., jax.Array], n: int, d: int, dtype: Any) -> Layer:
    """`call(layer, x)` for x [1 n d]."""
    x = jax.ShapeDtypeStruct((1, n, d), dtype)
    weights = unboxed(jax.eval_shape(lambda key, x: nn.init(call, layer)(key, x), jax.random.key(0), x))
    return Layer(nn.apply(call, layer), weights, x)


def _heads(d: int) -> tuple[int, int]:
    """How many, and their d_k."""
    return max(1, d // D_K), min(d, D_K)


def _mask(n: int, span: int = 0) -> Mask:
    segments: Any = np.ones((1, n), np.int32)
    return Mask(segments, segments, span=span)


# A row of Table 1, how it is computed, and the layer.
ROWS: dict[str, tuple[str, Callable[[int, int, Any], Layer]]] = {
    "self-attention": ("Self-Attention", self_attention("dense")),
    "self-attention, blocked": ("Self-Attention", self_attention("blocked")),
    "self-attention, fused": ("Self-Attention", self_attention("fused")),
    "self-attention, projections too": ("Self-Attention", with_projections),
    "recurrent (LSTM)": ("Recurrent", recurrent),
    f"convolutional (k = {KERNEL})": ("Convolutional", convolutional),
    f"restricted (r = {SPAN})": ("Self-Attention (restricted)", self_attention("dense", SPAN)),
}

# ------------------------------------------------------------------------------ Measuring


def sizes(text: str, name: str) -> list[int]:
    """Lengths or widths as they are given: "64,128,256".

    Raises:
        UserError: fewer than two, not ascending, not whole numbers, or a width that heads do not divide.
    """
    found = [read(word.strip(), Count, name) for word in text.split(",")]
    if len(found) < 2 or found != sorted(set(found)):
        raise UserError(f"--{name} are two sizes or more, ascending, such as 64,128,256, not {text}")
    if name == "widths" and (odd := [d for d in found if d % (D_K if d > D_K else 2)]):
        raise UserError(f"--widths are even, and above {D_K} multiples of it, the width of a head, not {odd[0]}")
    return found


def measure(lengths: Sequence[int], widths: Sequence[int], say: Say) -> dict[str, Any]:
    """All layers at each length, of the middle width, and at each width, of the middle length; as JSON has it.

    A row has the "paper"'s columns and, by "n" and by "d", what was "measured" at each size and the powers "fitted" to
    it: of "flops" forward (see `cost.flops`), "forward" and "training" (forward and back) seconds, medians, and
    "forward_bytes" and "training_bytes", what the compiled function needs beside arguments and results, by XLA. What
    cannot run here says why in "refused".
    """
    platform = jax.default_backend()
    dtype = DTYPE.get(platform, "bfloat16")
    middle = {"n": lengths[len(lengths) // 2], "d": widths[len(widths) // 2]}
    swept = {"n": [(n, middle["d"]) for n in lengths], "d": [(middle["n"], d) for d in widths]}
    rows = []
    for name, (row, build) in ROWS.items():
        say(f"measuring {name}")
        rows.append({"layer": name, "row": row, "paper": PAPER[row]._asdict(), **_row(build, swept, dtype)})
    return {
        "what": "table1",
        "devices": describe_devices(make_mesh(MeshConfig(data=1))),
        "dtype": dtype,
        "lengths": [*lengths],
        "widths": [*widths],
        "middle": middle,
        "rows": rows,
    }


def _row(build: Callable[..., Layer], swept: dict[str, list[tuple[int, int]]], dtype: str) -> dict[str, Any]:
    known: dict[tuple[int, int], dict[str, Any]] = {}
    try:
        for size in dict.fromkeys(size for each in swept.values() for size in each):
            known[size] = _measured(build(*size, dtype), *size)
    except UserError as refused:
        return {"refused": str(refused), "measured": None, "fitted": None}
    measured = {axis: [known[size] for size in each] for axis, each in swept.items()}
    return {"refused": None, "measured": measured, "fitted": {axis: _fitted(axis, measured[axis]) for axis in measured}}


def _measured(layer: Layer, n: int, d: int) -> dict[str, Any]:
    """One layer at one size."""

    def back(weights: Any, inputs: Any) -> Any:
        out, pull = jax.vjp(layer.function, weights, inputs)
        return pull(jnp.ones_like(out))

    arguments = _random((layer.weights, layer.inputs))
    found: dict[str, Any] = {"n": n, "d": d, "flops": cost.flops(jax.make_jaxpr(layer.function)(*arguments).jaxpr)}
    for name, function in (("forward", layer.function), ("training", back)):
        compiled: Any = jax.jit(function).lower(*arguments).compile()
        found[name] = _seconds(lambda compiled=compiled: compiled(*arguments))
        found[f"{name}_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    return found


def _random(shapes: Any) -> Any:
    """Arrays of these shapes, of the size that a layer's inputs and weights have."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / math.sqrt(x.shape[-1]), x.dtype), shapes)


def _seconds(run: Callable[[], Any]) -> float:
    """The median time of a run, after one that is not counted."""
    jax.block_until_ready(run())
    found: list[float] = []
    while len(found) < LEAST or (sum(found) < SECONDS and len(found) < MOST):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


QUANTITIES = ("flops", "forward", "training", "forward_bytes", "training_bytes")


def _fitted(axis: str, measured: list[dict[str, Any]]) -> dict[str, float | None]:
    return {name: power([(each[axis], each[name]) for each in measured]) for name in QUANTITIES}


def power(points: Sequence[tuple[float, float]]) -> float | None:
    """The p of y = c x^p by least squares over the logarithms of the LARGEST points (x ascending); None: y is 0."""
    last = points[-LARGEST:]
    if any(y <= 0 for _, y in last):
        return None
    x, y = np.log(np.array(last, float)).T
    return float(np.polyfit(x, y, 1)[0])


# ------------------------------------------------------------------------------ In words and as a picture

WORDS = (("", "layer"), ("the paper's", "complexity"), ("", "sequential"), ("", "path"))
SHOWN = {"flops": "FLOPs", "forward": "forward", "training": "training", "training_bytes": "memory"}


def text(found: dict[str, Any]) -> str:
    """Powers beside the paper's, then seconds and memory by size."""
    return "\n\n".join(_parts(found, columns.aligned))


def markdown(found: dict[str, Any]) -> str:
    """The same as tables of GitHub's Markdown."""
    return "\n\n".join(_parts(found, columns.markdown))


def _parts(found: dict[str, Any], form: Callable[..., str]) -> list[str]:
    refused = [f"{row['layer']}: not run, {row['refused']}" for row in found["rows"] if row["refused"]]
    by_size = [part for axis in "nd" for part in (_by_size_title(found, axis), form(_by_size(found, axis), WORDS))]
    return [_title(found), form([_powers(row) for row in found["rows"]], WORDS), *refused, *by_size]


def _title(found: dict[str, Any]) -> str:
    (n, d), most = (found["lengths"], found["widths"]), LARGEST
    return (
        f"Table 1 measured on {found['devices']}, {found['dtype']}, one sequence of n vectors of width d.\n"
        f"Powers, n: of {n[-most:][0]:,} to {n[-1]:,} at d = {found['middle']['d']:,}; "
        f"d: of {d[-most:][0]:,} to {d[-1]:,} at n = {found['middle']['n']:,}.\n"
        "Training is forward and back; memory is what that needs beside its arguments and results, by XLA.\n"
        "The paper's column leaves out the projections of self-attention, which are O(n·d²)."
    )


def _powers(row: dict[str, Any]) -> columns.Row:
    paper = row["paper"]
    cells = {
        ("", "layer"): row["layer"],
        ("the paper's", "complexity"): paper["complexity"],
        ("", "sequential"): paper["sequential"],
        ("", "path"): paper["path"],
    }
    for axis in "nd":
        cells[f"{axis}:", "paper's"] = str(paper[axis])
        for name, head in SHOWN.items():
            value = row["fitted"] and row["fitted"][axis][name]
            cells[f"{axis}:", head] = columns.number(value, ".2f") or "-"
    return cells


def _by_size_title(found: dict[str, Any], axis: str) -> str:
    other = "d" if axis == "n" else "n"
    return f"Training by {axis} at {other} = {found['middle'][other]:,}: milliseconds, and MiB"


def _by_size(found: dict[str, Any], axis: str) -> list[columns.Row]:
    rows = []
    for row in filter(lambda row: row["measured"], found["rows"]):
        cells = {("", "layer"): row["layer"]}
        for each in row["measured"][axis]:
            cells[f"{axis} = {each[axis]:,}", "ms"] = f"{each['training'] * 1e3:,.2f}"
            cells[f"{axis} = {each[axis]:,}", "MiB"] = f"{each['training_bytes'] / 2**20:,.2f}"
        rows.append(cells)
    return rows


def svg(found: dict[str, Any]) -> str:
    """Time and memory of training by length and by width."""
    panels = []
    for name, title, label in (("training", "time", _time), ("training_bytes", "memory", _memory)):
        for axis, what in (("n", "length n"), ("d", "width d")):
            other = "d" if axis == "n" else "n"
            curves = {
                row["layer"]: [(each[axis], each[name]) for each in row["measured"][axis] if each[name]]
                for row in found["rows"]
                if row["measured"]
            }
            at = f"{title} by {what}, at {other} = {found['middle'][other]:,}"
            panels.append(Panel(at, what, {name: curve for name, curve in curves.items() if curve}, label))
    title = f"Table 1 measured: a layer forward and back, {found['devices']}, {found['dtype']}"
    return picture(title, panels)


def _time(seconds: float) -> str:
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size * 0.999:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0e} s"


def _memory(size: float) -> str:
    for most, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= most * 0.999:
            return f"{size / most:,.0f} {unit}"
    return f"{size:,.0f} B"
