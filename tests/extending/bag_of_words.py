"""The smallest architecture: the mean of the source's embeddings, plus the last token's, through the softmax."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2t.batch import Sequences
from t2t.knobs import Count
from t2t.models.transformer import shift_right
from t2t.sharding import named


@dataclasses.dataclass(frozen=True)
class BagOfWordsConfig:
    """Its knobs."""

    vocab_size: Count = 1000  # V: word pieces shared by source and target
    d_model: Count = 64  # d_model: width of the embeddings
    longest = None  # a sentence may have any number of tokens
    target_vocab_size = 0  # it knows tasks with a shared vocabulary only

    def build(self) -> "BagOfWords":
        """The module."""
        return BagOfWords(self)


class BagOfWords(nn.Module):
    """Source and target tokens to logits; one matrix is all it has."""

    config: BagOfWordsConfig
    cache_axes = {"memory": "BD"}

    def setup(self) -> None:
        sizes = (self.config.vocab_size, self.config.d_model)
        self.table = self.param("table", named(nn.initializers.normal(0.1), "VD"), sizes)

    def __call__(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """source [B S], target [B T] -> logits [B T V]."""
        return self.logits(self.hidden(source, target, train=train))

    def hidden(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """source [B S], target [B T] -> what logits are made of, [B T D]."""
        return self.encode(source)[:, None] + self.table[shift_right(target)]

    def logits(self, y: jax.Array) -> jax.Array:
        """y [B T D] -> logits [B T V]."""
        return jnp.einsum("BTD,VD->BTV", y, self.table)

    def encode(self, source: Sequences) -> jax.Array:
        """source [B S] -> memory [B D]."""
        real = (source.segments != 0)[..., None]
        return (self.table[source.tokens] * real).sum(1) / jnp.maximum(real.sum(1), 1)

    def start(self, source: Sequences, memory: jax.Array, beams: int, room: int) -> dict[str, jax.Array]:
        """The cache before the first token."""
        return {"memory": memory}

    def step(self, cache: dict[str, jax.Array], tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The last tokens [B K] -> logits [B K V], cache."""
        return self.logits(cache["memory"][:, None] + self.table[tokens]), cache
