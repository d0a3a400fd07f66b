"""Section 3.2.1: attention itself, between the projections that section 3.2.2 puts around it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mask(NamedTuple):
    """Who may see whom: a query sees the keys of its own segment, and none after itself if `causal`.

    A value, not an array of flags: only a kernel that needs [B 1 T S] makes it.
    """

    query_segments: jax.Array  # int32 [B T], 0 = padding
    key_segments: jax.Array  # int32 [B S], 0 = padding, which nobody sees
    causal: bool = False

    def dense(self) -> jax.Array:
        """True where a query may see a key, [B 1 T S]."""
        queries, keys = self.query_segments[:, :, None], self.key_segments[:, None, :]
        allowed = (queries == keys) & (keys != 0)
        if self.causal:
            allowed &= jnp.tril(jnp.ones(allowed.shape[1:], bool))
        return allowed[:, None]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, change: Callable[[jax.Array], jax.Array] = lambda w: w
) -> jax.Array:
    """3.2.1, equation (1): softmax(q kᵀ / √d_k) v.

    q [B T H k], k [B S H k], v [B S H v] -> [B T H v]. The weights [B H T S] pass through `change`.
    A query that may see nothing (padding) gets the plain mean of the values, never a NaN.
    """
    scores = jnp.einsum("BTHk,BSHk->BHTS", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask.dense(), scores, jnp.finfo(jnp.float32).min)
    weights = change(jax.nn.softmax(scores))
    return jnp.einsum("BHTS,BSHv->BTHv", weights.astype(v.dtype), v)
