"""Two ways, one answer: our model against a plain NumPy reading of the paper."""

import jax
import numpy as np
import optax
import pytest
import reference
import toys

from t2t.loss import cross_entropy
from t2t.models.transformer import sinusoids
from t2t.optimizer import OptimizerConfig

PAIRS = [([5, 9, 3, 1], [7, 1]), ([4, 1], [11, 12, 13, 8, 1]), ([16, 3, 3, 8, 2, 1], [6, 5, 1])]


@pytest.mark.parametrize("target_vocab_size", [0, 23])
@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_logits(positions, target_vocab_size):
    config = toys.config(positions=positions, max_length=16, target_vocab_size=target_vocab_size)
    batch, params = toys.batch_of(PAIRS), toys.params(config)
    ours = config.build().apply(params, batch.source, batch.target)
    theirs = toys.as_reference(params, config)
    assert ours.shape[-1] == (target_vocab_size or 17) and (theirs["target"] is None) == (not target_vocab_size)
    for row, (source, target) in enumerate(PAIRS):
        expected = reference.decode(theirs, reference.encode(theirs, source), target)
        np.testing.assert_allclose(ours[row, : len(target)], expected, rtol=2e-4, atol=2e-4)


def test_sinusoids():
    np.testing.assert_allclose(sinusoids(50, 12), reference.sinusoids(50, 12), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.2])
def test_loss(epsilon):
    rng = np.random.default_rng(0)
    logits, batch = rng.normal(size=(4, 8, 17)) * 3, toys.batch_of(PAIRS)
    sums = cross_entropy(logits.astype(np.float32), batch.target.tokens, batch.target.segments, epsilon)
    rows = [(logits[i, : len(target)], target) for i, (_, target) in enumerate(PAIRS)]
    assert sums["tokens"] == sum(len(target) for _, target in rows)
    np.testing.assert_allclose(sums["loss"], sum(reference.smoothed_loss(*row, epsilon) for row in rows), rtol=1e-5)
    np.testing.assert_allclose(sums["nll"], sum(reference.nll(*row) for row in rows), rtol=1e-5)
    assert sums["correct"] == sum((x.argmax(-1) == target).sum() for x, target in rows)


@pytest.mark.parametrize(("step", "rate"), [(1, 1.7469e-7), (4000, 6.9877e-4), (100_000, 1.39754e-4)])
def test_rate_of_base(step, rate):
    ours = float(OptimizerConfig().rate(step, 512))
    np.testing.assert_allclose(ours, rate, rtol=1e-4)
    np.testing.assert_allclose(ours, reference.learning_rate(step, 512, 4000), rtol=1e-6)


def test_adam():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(6, 3, 4))
    config = OptimizerConfig(warmup_steps=3, scale=50.0)
    adam, ours = config.build(512), start
    state = adam.init(ours)
    for gradient in gradients:
        updates, state = adam.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    rates = [50 * reference.learning_rate(step, 512, 3) for step in range(1, 7)]
    (expected,) = reference.adam([start], [[g] for g in gradients], rates)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_clipping_is_off_by_default_and_scales_the_whole_gradient_when_on():
    gradient = {"a": np.full(4, 3.0, np.float32), "b": np.full(4, 4.0, np.float32)}  # norm 10
    off, on = OptimizerConfig().build(512), OptimizerConfig(clip_norm=1.0).build(512)
    assert len(jax.tree.leaves(on.init(gradient))) == len(jax.tree.leaves(off.init(gradient)))
    moment = on.update(gradient, on.init(gradient))[1][1][0].mu
    np.testing.assert_allclose(moment["b"], 0.1 * 4.0 / 10, rtol=1e-6)
    moment = off.update(gradient, off.init(gradient))[1][0].mu
    np.testing.assert_allclose(moment["b"], 0.1 * 4.0, rtol=1e-6)
