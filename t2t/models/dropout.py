"""Dropout (section 5.4) whose mask is an integer hash of each element's place.

A mask by `jax.random` takes a good part of a training step on a CPU. This one is a few integer operations that XLA
fuses into whatever uses the result, so it never lies in memory. It depends on the key and on the element's place in the
whole array, so that splitting the array over devices, or the batch into parts, changes nothing.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit moves every output bit (xor-shift-multiply)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


_first_row: contextvars.ContextVar[jax.Array | int] = contextvars.ContextVar("first_row", default=0)


@contextlib.contextmanager
def rows_from(first: jax.Array | int) -> Iterator[None]:
    """Inside, row 0 of every array that is dropped from is row `first` of the batch that it is a part of."""
    token = _first_row.set(first)
    yield
    _first_row.reset(token)


def random_bits(key: jax.Array, shape: tuple[int, ...], first_row: jax.Array | int = 0) -> jax.Array:
    """uint32 of `shape`, a function of the key and of each element's index alone; rows are counted from `first_row`.

    Two rounds, each with a word of its own drawn from `key`: one round alone would make the bits of two keys shifted
    copies of each other.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.full(shape, jnp.uint32(first_row) * jnp.uint32(math.prod(shape[1:]) % 2**32))
    for axis in range(len(shape)):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += place * jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    return _mix(_mix(index + words[0]) ^ words[1])


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate)."""

    rate: float  # P_drop

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x of any shape -> the same shape; x itself unless training."""
        if not train or self.rate == 0:
            return x
        bits = random_bits(self.make_rng("dropout"), x.shape, _first_row.get())
        keep = bits >= jnp.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
