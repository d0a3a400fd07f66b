"""Products of arrays: the einsum they are written as, in value and gradient, and in the types that they promise."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t.batch import Batch
from t2t.cost import abstract_batch
from t2t.data.batching import fill
from t2t.decode import beam_search
from t2t.experiment import get, override
from t2t.models import products
from t2t.models.products import add_bias, einsum, linear, product
from t2t.sharding import unboxed
from t2t.train import abstract_state, init_state, train_step

KINDS = ("recurrent", "convolutional", "language_model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("BTD,DHk->BTHk", dict(B=3, T=5, D=8, H=2, k=3)),
        ("BTHv,HvD->BTD", dict(B=3, T=5, D=8, H=2, v=3)),
        ("BTD,DF->BTF", dict(B=3, T=5, D=8, F=16)),
        ("BTF,FD->BTD", dict(B=3, T=5, D=8, F=16)),
        ("BTD,VD->BTV", dict(B=3, T=5, D=8, V=11)),
    ],
)
def test_a_linear_map_and_its_gradients_are_those_of_the_einsum(equation, sizes, dtype):
    """Against float64 NumPy, at the precision of the products; the weight's gradient is float32 whatever x is."""
    draw = np.random.default_rng(0)
    x_axes, w_axes, y_axes = equation.replace("->", ",").split(",")
    x, w, dy = (draw.normal(size=[sizes[a] for a in axes]).astype("f") for axes in (x_axes, w_axes, y_axes))
    x = np.asarray(jnp.asarray(x, dtype))
    y, gradients = jax.vjp(lambda x, w: linear(equation, "float32", x, w), jnp.asarray(x), jnp.asarray(w))
    dx, dw = gradients(jnp.asarray(dy))
    assert (y.dtype, dx.dtype, dw.dtype) == ("float32", dtype, "float32")
    x, w, dy = (each.astype("d") for each in (x, w, dy))
    close = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=0.02, atol=0.06)
    np.testing.assert_allclose(y, np.einsum(equation, x, w), **close)
    np.testing.assert_allclose(dx.astype("f"), np.einsum(f"{y_axes},{w_axes}->{x_axes}", dy, w), **close)
    np.testing.assert_allclose(dw, np.einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy), **close)


@pytest.mark.parametrize(
    ("dtype", "result"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_a_product_of_activations_and_its_gradients_are_those_of_the_einsum(dtype, result):
    """Against float64 NumPy, at the precision of the products."""
    draw = np.random.default_rng(0)
    a, b, dy = (draw.normal(size=shape) for shape in ((2, 5, 3, 8), (2, 7, 3, 8), (2, 3, 5, 7)))
    a, b = (jnp.asarray(each, dtype) for each in (a, b))
    dy = jnp.asarray(dy, result)
    y, gradients = jax.vjp(lambda a, b: product("BTHk,BSHk->BHTS", result, a, b), a, b)
    da, db = gradients(dy)
    assert (y.dtype, da.dtype, db.dtype) == (result, dtype, dtype)
    a, b, dy = (np.asarray(each, "d") for each in (a, b, dy.astype(dtype)))
    close = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=0.01, atol=0.01)
    np.testing.assert_allclose(np.asarray(y, "d"), np.einsum("BTHk,BSHk->BHTS", a, b), **close)
    np.testing.assert_allclose(np.asarray(da, "d"), np.einsum("BHTS,BSHk->BTHk", dy, b), **close)
    np.testing.assert_allclose(np.asarray(db, "d"), np.einsum("BHTS,BTHk->BSHk", dy, a), **close)


@pytest.mark.parametrize("result", ["float32", "bfloat16"])
def test_sums_of_bfloat16_are_float32(result):
    """A sum of ones in bfloat16 ends at 256: 256 + 1 is 256 there."""
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    assert jax.jit(lambda a, b: einsum("ij,kj->ik", a, b, result))(ones, ones).item() == 4096


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_a_bias_is_added_in_the_type_of_what_it_is_added_to_and_its_gradient_summed_in_float32(shape, dtype):
    """Against float64 NumPy, as exactly as float32 sums what bfloat16 could not tell from 256."""
    draw = np.random.default_rng(0)
    y, dy = (jnp.asarray(draw.normal(1, 1, (40, 50, *shape)), dtype) for _ in range(2))
    bias = jnp.asarray(draw.normal(size=shape), "float32")
    added, gradients = jax.vjp(add_bias, y, bias)
    to_y, to_bias = gradients(dy)
    assert (added.dtype, to_y.dtype, to_bias.dtype) == (dtype, dtype, "float32")
    np.testing.assert_array_equal(added, y + bias.astype(dtype))
    np.testing.assert_array_equal(to_y, dy)
    np.testing.assert_allclose(to_bias, np.asarray(dy, "d").sum((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("name", ["quickstart", "baseline_convolutional", "baseline_language_model"])
def test_no_gradient_is_summed_in_bfloat16(name):
    """Such sums are inexact, and slow on a CPU: the step as traced has none."""
    half = override(get(name), {"model.dtype": "bfloat16", "model.num_layers": 1})
    traced = str(
        jax.make_jaxpr(functools.partial(train_step, half))(unboxed(abstract_state(half)), abstract_batch(half))
    )
    assert re.search(r":f32\[[\d,]*\] = reduce_sum\[", traced)
    assert not re.search(r":bf16\[[\d,]*\] = reduce_sum\[", traced)


@pytest.mark.parametrize(("fast", "given"), [(True, "bf16"), (False, "f32")])
def test_on_a_cpu_products_are_asked_for_in_float32(fast, given, monkeypatch):
    """Forward and for each gradient; both arrays stay bfloat16 where the CPU multiplies these, and only there."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: fast)
    shape = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)

    def both(a, b):
        y, pull = jax.vjp(lambda a, b: product("ij,jk->ik", "bfloat16", a, linear("ij,jk->ik", "bfloat16", a, b)), a, b)
        return y, pull(a)

    lowered = jax.jit(both).lower(shape, shape).as_text()
    multiplied = [line for line in lowered.split("\n") if "= stablehlo.dot_general" in line]
    assert len(multiplied) == 6
    assert all(f"(tensor<4x4x{given}>, tensor<4x4x{given}>) -> tensor<4x4xf32>" in line for line in multiplied)


@pytest.mark.parametrize(
    ("maker", "flags", "fast"),
    [
        ("GenuineIntel", "fma avx512_bf16", False),
        ("GenuineIntel", "fma avx512_bf16 amx_bf16 amx_tile", True),
        ("AuthenticAMD", "fma avx512_bf16", True),
        ("AuthenticAMD", "fma avx2", False),
    ],
)
def test_what_a_cpu_multiplies_fast_is_read_from_what_linux_tells(maker, flags, fast, tmp_path):
    assert not products.multiplies_bfloat16(tmp_path / "not Linux")
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor : 0\nvendor_id : {maker}\nflags : {flags}\n")
    assert products.multiplies_bfloat16(told) == (fast and jax.__version_info__ >= products.MULTIPLIES_BFLOAT16)


@pytest.mark.parametrize(
    "name",
    ["quickstart", "modern_restricted", "modern_blocked", *(f"baseline_{kind}" for kind in KINDS)],
)
def test_architectures_train_and_decode_in_bfloat16(name, monkeypatch):
    """XLA's CPU backend fails on some products of bfloat16; the gradients' norm is near that in float32."""
    if jax.__version_info__ >= products.MULTIPLIES_BFLOAT16:
        monkeypatch.setattr(products, "multiplies_bfloat16", lambda: True)
        jax.clear_caches()  # of programs that were made for this CPU
    rows = fill([[5, 6, 7, 1], [8, 9, 1]], 2, 32)
    batch = Batch(rows, rows)
    whole, half = (
        override(get(name), {"model.dtype": dtype, "model.num_layers": 1}) for dtype in ("float32", "bfloat16")
    )
    state = jax.jit(lambda key: unboxed(init_state(half, key)))(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    norms = [
        jax.jit(functools.partial(train_step, each))(state, batch)[1]["gradient_norm"].item() for each in (whole, half)
    ]
    assert abs(norms[1] / norms[0] - 1) < 0.05
    found = beam_search(half.model.build(), state.params, rows, np.array([4, 4]), 2, 0.6, 4)
    assert np.isfinite(found.scores).all()
