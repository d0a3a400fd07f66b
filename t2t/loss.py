"""Section 5.4's label-smoothed cross-entropy, as sums: sums of shards and of batches add up exactly."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t2t.sharding import shares

Sums = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, target: jax.Array, segments: jax.Array, epsilon: float) -> Sums:
    """Sums over the tokens that are not padding, in float32.

    The truth has probability 1 - epsilon, every other entry of the vocabulary epsilon / (V - 1).

    logits [B T V], target [B T], segments [B T], 0 = padding -> scalars: `loss` (smoothed, nats), `nll` (not smoothed,
    nats), `correct` (tokens whose truth is the likeliest piece), `tokens`.
    """
    log_z, total, truth, largest = _reduced(logits, target)
    nll = log_z - truth
    others = (logits.shape[-1] - 1) * log_z - (total - truth)  # the sum of -log p over all but the truth
    sums = {
        "loss": (1 - epsilon) * nll + epsilon / (logits.shape[-1] - 1) * others,
        "nll": nll,
        "correct": truth >= largest,  # no arg max: it is several times slower on a CPU
        "tokens": jnp.ones_like(nll),
    }
    return {name: jnp.sum(jnp.where(segments != 0, x, 0), dtype=jnp.float32) for name, x in sums.items()}


@jax.custom_vjp
def _reduced(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
    """Of logits [B T V] the log of the sum of exponentials, the sum, that of the target [B T], and the largest: [B T].

    The largest has no gradient. That of the others is made in one pass over the logits, and no part of it by adding at
    places of an array of zeros, as the gradient of a look-up is.
    """
    truths = jnp.where(_is_target(logits, target), logits, 0)
    if not _one_pass():
        return jax.nn.logsumexp(logits, axis=-1), logits.sum(-1), truths.sum(-1), logits.max(-1)
    given = logits, jnp.ones_like(logits), logits, truths
    begin = jnp.finfo(jnp.float32).min, *(jnp.zeros((), jnp.float32) for _ in range(3))
    largest, powers, total, truth = jax.lax.reduce(given, begin, _both, (logits.ndim - 1,))
    return largest + jnp.log(powers), total, truth, largest


def _both(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Largest, sum of exponentials below it (Milakov and Gimelshein 2018), and two sums, of both of two parts."""
    largest = jnp.maximum(a[0], b[0])
    powers = a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest)
    return largest, powers, a[2] + b[2], a[3] + b[3]


def _one_pass() -> bool:
    """Whether all is found in one pass over logits that lie in a GPU's memory; a CPU is several times slower at that.

    Where devices share the vocabulary, XLA splits sums and not this.
    """
    return jax.default_backend() == "gpu" and shares("V") == 1


def _is_target(logits: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[-1]) == target[..., None]


def _reduced_forward(logits: jax.Array, target: jax.Array) -> Any:
    found = _reduced(logits, target)
    return found, (logits, target, found[0])


def _reduced_backward(kept: Any, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    logits, target, log_z = kept
    d_log_z, d_total, d_truth, _ = (each[..., None] for each in gradients)
    d_truths = jnp.where(_is_target(logits, target), d_truth, 0)
    return jnp.exp(logits - log_z[..., None]) * d_log_z + d_total + d_truths, None


_reduced.defvjp(_reduced_forward, _reduced_backward)


def in_slices(
    project: Callable[[jax.Array], jax.Array],
    y: jax.Array,
    target: jax.Array,
    segments: jax.Array,
    epsilon: float,
    number: int,
) -> Sums:
    """`cross_entropy` of the logits project(y), of which there is only one slice of positions at a time.

    At most 1 / `number` of the logits are in memory. The gradient of `loss`, the only one of the sums that has one, is
    made slice by slice together with the sums, so that no logits are made twice.

    y [B T D], target [B T], segments [B T]; project takes [B t D] to [B t V]; number: of slices, a divisor of T.
    """
    sums: Sums
    if number == 1:
        sums = cross_entropy(project(y), target, segments, epsilon)
    else:
        parts = tuple(
            jnp.moveaxis(x.reshape(x.shape[0], number, -1, *x.shape[2:]), 1, 0) for x in (y, target, segments)
        )
        pure, weights = jax.closure_convert(project, parts[0][0])
        sums = _in_slices(pure, epsilon, weights, *parts)
    return {name: x if name == "loss" else jax.lax.stop_gradient(x) for name, x in sums.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_slices(project: Callable[..., jax.Array], epsilon: float, weights: Any, *parts: jax.Array) -> Sums:
    """Of slices y [n B t D], target [n B t] and segments [n B t]; project takes one of y, and the weights."""
    return _in_slices_forward(project, epsilon, weights, *parts)[0]


def _in_slices_forward(project: Callable[..., jax.Array], epsilon: float, weights: Any, *parts: jax.Array) -> Any:
    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        y, target, segments = part

        def loss(weights: Any, y: jax.Array) -> tuple[jax.Array, Sums]:
            sums = cross_entropy(project(y, *weights), target, segments, epsilon)
            return sums["loss"], sums

        (d_weights, dy), sums = jax.grad(loss, (0, 1), has_aux=True)(weights, y)
        return jax.tree.map(jnp.add, total, (sums, d_weights)), dy

    zeros: Sums = {name: jnp.zeros(()) for name in ("loss", "nll", "correct", "tokens")}
    (sums, d_weights), dy = jax.lax.scan(add, (zeros, jax.tree.map(jnp.zeros_like, weights)), parts)
    return sums, (d_weights, dy)


def _in_slices_backward(project: Callable[..., jax.Array], epsilon: float, gradient: Any, d_sums: Sums) -> Any:
    return *jax.tree.map(lambda x: (x * d_sums["loss"]).astype(x.dtype), gradient), None, None


_in_slices.defvjp(_in_slices_forward, _in_slices_backward)


def slices(rows: int, length: int, positions: int) -> int:
    """Into how many slices of its length an array [rows length] is cut, so that each has at most `positions` if it can.

    The fewest that divide the length; at most a slice a position.
    """
    wanted = min(length, -(-rows * length // positions))
    return next(n for n in range(wanted, length + 1) if length % n == 0)
