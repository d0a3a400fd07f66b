"""Products of arrays and their gradients, in the types and the order that a device is fast in.

Sums are float32 whatever is multiplied. Axis letters are those of `t2t.sharding`.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# JAX 0.7.2 fails on a CPU at products of bfloat16 whose result is float32, for some orders of letters.
MULTIPLIES_BFLOAT16 = (0, 10, 0)


def einsum(equation: str, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """The einsum of two arrays, its result of `dtype`.

    On a CPU the product itself is float32: for a result in bfloat16 XLA would make float32 of both arrays first, also
    where bfloat16 is what the CPU multiplies fast. Where it is not, the product is given float32.
    """
    if jax.default_backend() != "cpu":
        return jnp.einsum(equation, a, b, preferred_element_type=dtype)
    if not multiplies_bfloat16():
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32).astype(dtype)


@functools.cache
def multiplies_bfloat16(told: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU is faster at products of bfloat16 than of float32: with AMX, and with AMD's AVX512-BF16.

    AMD's processors take as long for an instruction of AVX512-BF16 as for one of float32 with half the products;
    Intel's without AMX do not gain by it. `told`: where Linux names what a CPU can do; elsewhere nobody says, and
    float32 is never much slower.
    """
    words = set(told.read_text().split()) if told.exists() else set()
    fast = "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words
    return fast and jax.__version_info__ >= MULTIPLIES_BFLOAT16


def product(equation: str, dtype: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum of two activations of one type, its result of `dtype`; those of its gradient are of that type too.

    JAX by itself would multiply a float32 gradient with bfloat16 activations, and that in float32.
    """
    if a.dtype == jnp.float32:
        return jnp.einsum(equation, a, b)
    return _product(equation, dtype, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(equation: str, dtype: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return einsum(equation, a, b, dtype)


def _product_forward(equation: str, dtype: str, a: jax.Array, b: jax.Array) -> Any:
    return _product(equation, dtype, a, b), (a, b)


def _product_backward(equation: str, dtype: str, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = kept
    a_axes, b_axes, y_axes = letters(equation)
    dy = dy.astype(a.dtype)
    return _in_order(y_axes, dy, b_axes, b, a_axes, a.dtype), _in_order(y_axes, dy, a_axes, a, b_axes, b.dtype)


def _in_order(a_axes: str, a: jax.Array, b_axes: str, b: jax.Array, y_axes: str, dtype: Any) -> jax.Array:
    """An einsum whose first argument has the first of the result's letters that is not in both.

    The other way round XLA's CPU backend has no product of bfloat16 for some orders of letters, and fails.
    """
    alone = next((letter for letter in y_axes if (letter in a_axes) != (letter in b_axes)), "")
    if alone in b_axes:
        a_axes, a, b_axes, b = b_axes, b, a_axes, a
    return einsum(f"{a_axes},{b_axes}->{y_axes}", a, b, dtype)


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def linear(equation: str, dtype: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """A linear map written as an einsum, its result of `dtype`; products are of x's type.

    The gradients are the einsums that JAX would take, in an order that the CPU's matrix product is fast in: of the two
    arrays that a weight's gradient is a product of, the narrower comes first, because the first is copied, transposed.
    The weight's gradient is of the weight's own type, whatever x is of.
    """
    return einsum(equation, x, weight.astype(x.dtype), dtype)


def _linear_forward(equation: str, dtype: str, x: jax.Array, weight: jax.Array) -> Any:
    return linear(equation, dtype, x, weight), (x, weight)


def _linear_backward(equation: str, dtype: str, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    x_axes, w_axes, y_axes = letters(equation)
    dy = dy.astype(x.dtype)
    dx = einsum(f"{y_axes},{w_axes}->{x_axes}", dy, weight.astype(x.dtype), x.dtype)
    first, second = (x_axes, x), (y_axes, dy)
    if x.size > dy.size:
        first, second = second, first
    narrow, wide = ("".join(a for a in each if a in w_axes) for each in (first[0], second[0]))
    product = einsum(f"{first[0]},{second[0]}->{narrow}{wide}", first[1], second[1], weight.dtype)
    # The barrier keeps XLA from taking the transposition into the product, which would undo the order.
    return dx, jnp.einsum(f"{narrow}{wide}->{w_axes}", jax.lax.optimization_barrier(product))


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Y + b, of y's type, for y [... *b.shape]; b's gradient is summed in float32 and of b's own type.

    JAX would sum a bfloat16 gradient in bfloat16, which XLA's CPU backend does many times as slowly.
    """
    return y + bias.astype(y.dtype)


def _add_bias_forward(y: jax.Array, bias: jax.Array) -> Any:
    return add_bias(y, bias), bias


def _add_bias_backward(bias: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, dy.sum(range(dy.ndim - bias.ndim), dtype=jnp.float32).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def letters(equation: str) -> tuple[str, str, str]:
    """Those of both arguments and of the result."""
    inputs, output = equation.split("->")
    first, second = inputs.split(",")
    return first, second, output
