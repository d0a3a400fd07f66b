"""Section 5.4's label-smoothed cross-entropy, as sums: sums of shards and of batches add up exactly."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Sums = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, target: jax.Array, segments: jax.Array, epsilon: float) -> Sums:
    """Sums over the tokens that are not padding, in float32.

    The truth has probability 1 - epsilon, every other entry of the vocabulary epsilon / (V - 1).

    logits [B T V], target [B T], segments [B T], 0 = padding -> scalars: `loss` (smoothed, nats), `nll` (not smoothed,
    nats), `correct` (tokens whose truth is the likeliest piece), `tokens`.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    truth = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    nll = log_z - truth
    others = (logits.shape[-1] - 1) * log_z - (logits.sum(-1) - truth)  # the sum of -log p over all but the truth
    sums = {
        "loss": (1 - epsilon) * nll + epsilon / (logits.shape[-1] - 1) * others,
        "nll": nll,
        "correct": truth >= logits.max(-1),  # no arg max: it is several times slower on a CPU
        "tokens": jnp.ones_like(nll),
    }
    return {name: jnp.sum(jnp.where(segments != 0, x, 0), dtype=jnp.float32) for name, x in sums.items()}


def in_slices(
    project: Callable[[jax.Array], jax.Array],
    y: jax.Array,
    target: jax.Array,
    segments: jax.Array,
    epsilon: float,
    number: int,
) -> Sums:
    """`cross_entropy` of the logits project(y), of which there is only one slice of positions at a time.

    The logits of a slice are thrown away and made again for the gradient: at most 1 / `number` of them are in memory.

    y [B T D], target [B T], segments [B T]; project takes [B t D] to [B t V]; number: of slices, a divisor of T.
    """
    if number == 1:
        return cross_entropy(project(y), target, segments, epsilon)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], number, -1, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def add(total: Sums, part: tuple[jax.Array, ...]) -> tuple[Sums, None]:
        y, target, segments = part
        return jax.tree.map(jnp.add, total, cross_entropy(project(y), target, segments, epsilon)), None

    zeros: Sums = {name: jnp.zeros(()) for name in ("loss", "nll", "correct", "tokens")}
    return jax.lax.scan(add, zeros, tuple(map(split, (y, target, segments))))[0]


def slices(rows: int, length: int, positions: int) -> int:
    """Into how many slices of its length an array [rows length] is cut, so that each has at most `positions` if it can.

    The fewest that divide the length; at most a slice a position.
    """
    wanted = min(length, -(-rows * length // positions))
    return next(n for n in range(wanted, length + 1) if length % n == 0)
