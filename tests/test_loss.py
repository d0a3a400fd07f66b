"""The loss in slices of positions: the same sums and gradients, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t import cost, loss, train
from t2t.batch import Batch, Sequences
from t2t.experiment import override
from t2t.loss import cross_entropy, in_slices, slices
from t2t.sharding import MeshConfig, make_mesh, on


@pytest.mark.parametrize(
    ("rows", "length", "positions", "number"),
    [(8, 16, 128, 1), (8, 16, 127, 2), (8, 16, 64, 2), (8, 16, 63, 4), (4, 15, 20, 3), (4, 15, 1, 15), (1, 7, 6, 7)],
)
def test_slices_divide_the_length_and_are_as_few_as_may_be(rows, length, positions, number):
    assert slices(rows, length, positions) == number
    assert length % number == 0 and (rows * length // number <= positions or number == length)


@pytest.mark.parametrize("number", [1, 2, 6, 12])
def test_in_slices_sums_and_gradients_are_those_of_the_whole(number):
    """Float32 sums in another order: 1e-6 relative, on values of order 1."""
    rng = np.random.default_rng(0)
    y, table = rng.normal(size=(5, 12, 8)), rng.normal(size=(30, 8))
    target, segments = rng.integers(0, 30, (5, 12)), rng.integers(0, 3, (5, 12))

    def value(table, y, cut):
        def project(y):
            return jnp.einsum("BTD,VD->BTV", y, table)

        if cut:
            sums = in_slices(project, y, target, segments, 0.1, number)
        else:
            sums = cross_entropy(project(y), target, segments, 0.1)
        return sums["loss"], sums

    arrays = jnp.asarray(table, jnp.float32), jnp.asarray(y, jnp.float32)
    ours, theirs = (
        jax.jit(jax.grad(value, (0, 1), has_aux=True), static_argnums=2)(*arrays, cut) for cut in (True, False)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-5), ours, theirs)


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_and_gradients_are_those_of_the_definition(scale, one_pass, monkeypatch):
    """Both ways to sum, also where exponentials of the logits themselves would be infinite; of each sum by itself."""
    monkeypatch.setattr(loss, "_one_pass", lambda: one_pass)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.normal(size=(3, 5, 37)), jnp.float32)
    target, segments = rng.integers(0, 37, (3, 5)), rng.integers(0, 3, (3, 5))

    def defined(logits):
        log_p = jax.nn.log_softmax(logits)
        truth = jax.nn.one_hot(target, 37)
        smoothed = 0.9 * truth + 0.1 / 36 * (1 - truth)
        each = {"loss": -(smoothed * log_p).sum(-1), "nll": -(truth * log_p).sum(-1)}
        each |= {"correct": log_p.argmax(-1) == target, "tokens": jnp.ones((3, 5))}
        return {name: jnp.where(segments != 0, x, 0).sum() for name, x in each.items()}

    def ours(logits):
        return cross_entropy(logits, target, segments, 0.1)

    for name in ("loss", "nll"):
        found, expected = (
            jax.value_and_grad(lambda x, f=f, name=name: (f(x)[name], f(x)), has_aux=True)(logits)
            for f in (ours, defined)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), found, expected)


def test_one_pass_is_for_a_gpu_that_has_all_of_the_vocabulary(monkeypatch):
    assert not loss._one_pass()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loss._one_pass()
    for config, alone in ((MeshConfig(data=2, model=2), False), (MeshConfig(data=2, fsdp=2), True)):
        with on(make_mesh(config)):
            assert loss._one_pass() == alone


def batch_of(rows, length, vocabulary):
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(0, 3, (rows, length)), axis=-1)[:, ::-1]
    positions = np.arange(length) * np.ones_like(segments)
    tokens = np.where(segments, rng.integers(3, vocabulary, (rows, length)), 0)
    side = Sequences(*(jnp.asarray(x, jnp.int32) for x in (tokens, segments, positions)))
    return Batch(side, side)


def test_the_gradient_of_a_training_step_is_the_same(toy):
    """And its sums; dropout is on. Not weights, which Adam's first step moves as far for any gradient."""
    batch = batch_of(16, 16, 40)
    state = train.new_state(toy, make_mesh(toy.mesh))
    found = [
        jax.jit(functools.partial(train._gradient, override(toy, {"mesh.logits_per_device": positions})))(state, batch)
        for positions in (4096, 32)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_memory_falls_where_logits_are_most_of_it(toy):
    """By XLA's own analysis, of a vocabulary of 20,000 and a model of width 32."""
    wide = override(toy, {"model.vocab_size": 20_000, "batching.tokens": 2048, "batching.max_length": 32})
    whole, cut = (
        cost.compiled(override(wide, {"mesh.logits_per_device": positions}))["xla_memory"]["temporaries"]
        for positions in (2048, 128)
    )
    logits = 2048 * 20_000 * 4
    assert whole > logits and cut < 0.5 * logits


def test_flops_are_the_models_own(toy):
    """What slices compute twice is not counted."""
    found = [cost.cost(override(toy, {"mesh.logits_per_device": n}), None) for n in (4096, 64)]
    assert found[0]["flops_per_step"] == found[1]["flops_per_step"]
    assert found[1]["memory_per_device"]["logits"] < found[0]["memory_per_device"]["logits"]
