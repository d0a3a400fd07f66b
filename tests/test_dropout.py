"""The dropout mask is a hash: held here to what independent random bits would do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t2t.models.dropout import Dropout, random_bits


def bits(seed, shape=(64, 128, 64)):
    return np.asarray(random_bits(jax.random.key(seed), shape))


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("bit", range(32))
def test_every_bit_is_fair(bit):
    mean = ((bits(0) >> bit) & 1).mean()
    assert abs(mean - 0.5) < 5 * 0.5 / np.sqrt(64 * 128 * 64)  # five standard errors


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_along_every_axis_are_independent(seed, rate):
    kept = bits(seed) >= rate * 2**32
    limit = 5 / np.sqrt(kept.size)
    assert abs(kept.mean() - (1 - rate)) < limit
    for axis in range(3):
        for distance in (1, 2, 8):
            first = np.take(kept, range(kept.shape[axis] - distance), axis)
            second = np.take(kept, range(distance, kept.shape[axis]), axis)
            assert abs(correlation(first, second)) < limit


def test_keys_that_differ_little_give_unrelated_masks():
    base = jax.random.key(0)
    masks = [np.asarray(random_bits(jax.random.fold_in(base, step), (64, 128, 64))) < 2**31 for step in range(6)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(correlation(a, b)) < 5 / np.sqrt(a.size)


def test_bytes_are_uniform_by_chi_squared():
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((bits(3) >> shift) & 255).ravel(), minlength=256)
        expected = counts.sum() / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert abs(statistic - 255) < 5 * np.sqrt(2 * 255)


def test_runs_of_dropped_elements_are_geometric():
    kept = (bits(5) >= 0.5 * 2**32).ravel()
    ends = np.flatnonzero(np.diff(kept))
    runs = np.diff(ends)
    for length in range(1, 8):
        share, expected = (runs == length).mean(), 0.5**length
        assert abs(share - expected) < 5 * np.sqrt(expected / len(runs))


def test_the_mask_does_not_depend_on_the_layout():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("one device only")
    mesh = Mesh(np.array(devices[:2]), "x")
    for spec in (PartitionSpec("x"), PartitionSpec(None, "x"), PartitionSpec(None, None, "x")):
        split = jax.jit(random_bits, static_argnums=1, out_shardings=NamedSharding(mesh, spec))
        np.testing.assert_array_equal(split(jax.random.key(0), (8, 16, 32)), bits(0, (8, 16, 32)))


def test_what_is_kept_is_scaled_up():
    x = jnp.ones((200, 500))
    dropped = Dropout(0.3).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.7)}
    np.testing.assert_allclose(dropped.mean(), 1, atol=5 * np.sqrt(0.3 / 0.7 / x.size))
    assert Dropout(0.3).apply({}, x, train=False) is x
    assert Dropout(0.0).apply({}, x, train=True) is x
