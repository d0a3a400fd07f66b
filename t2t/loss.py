"""Section 5.4's label-smoothed cross-entropy, as sums: sums of shards and of batches add up exactly."""

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
