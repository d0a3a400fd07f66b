"""A Transformer that only decodes: one row of tokens, each predicted from those before it.

Its layers are the decoder's of section 3.1 without the attention over an encoder's output. What a target is given, a
source or a prompt, stands before it in the same row, as in Liu et al. 2018 (https://arxiv.org/abs/1801.10198): source,
the EOS that ends it as the separator, target. Attention is causal in all of the row, the source's part included.

Departure: only the target's tokens are predicted, in training too, where Liu et al. predict the source's as well. So
loss and perplexity are those of the same tokens as an encoder-decoder's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from t2t.batch import PAD, Sequences
from t2t.errors import UserError
from t2t.models.attention import Mask
from t2t.models.transformer import (
    Cache,
    Embedding,
    EncoderLayer,
    Norm,
    Transformer,
    TransformerConfig,
    scan_layers,
    shift_right,
)


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(TransformerConfig):
    """A Transformer's knobs; `num_layers` are those of the one stack that there is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_vocab_size:
            given = f"not {self.target_vocab_size}"
            raise UserError(f"--model.target_vocab_size must be 0 in a language model, {given}: it has one vocabulary")
        for knob in ("decoder_layers", "projection", "start"):  # of an encoder beside a decoder
            if (given := getattr(self, knob)) != (only := getattr(TransformerConfig, knob)):
                raise UserError(f"--model.{knob} must be {only} in a language model, not {given}")
        if self.attention_span or self.attention == "fused":  # in packed rows a target stands apart from its source
            given = f"not {self.attention} and {self.attention_span}"
            raise UserError(
                f"a language model has --model.attention dense or blocked and --model.attention_span 0, {given}"
            )

    @property
    def longest(self) -> int | None:
        """Tokens that a source or a target may have: half of the learned positions, as both stand in one row."""
        return self.max_length // 2 if self.positions == "learned" else None

    def build(self) -> "LanguageModel":
        """The module; its parameters are made by `init` and passed to `apply`."""
        return LanguageModel(self)


class LanguageModel(Transformer):
    """Sources, which may be empty, and targets to logits for every target position.

    In decoding, the source's tokens but the last are fed at once, by `start`; the first `step` feeds the last of them.
    """

    cache_axes = {**Transformer.cache_axes, "last": "B"}  # the source's last token, PAD if it has none

    def setup(self) -> None:
        self.embedding = self.target_embedding = Embedding(
            self.config, self.config.vocab_size, bias=self.config.output_bias
        )
        self.decoder = CausalLayer(self.config)  # one layer, scanned: its weights are stacked with `N` in front
        if self.config.norm == "pre":
            self.decoder_norm = Norm(self.config)

    def hidden(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> the output at the target's positions [B T D], which `logits` takes."""
        before, last = preceding(source, target.segments)
        fed = jnp.where(target.positions == 0, last, shift_right(target))
        tokens = jnp.concatenate([shift_right(source), fed], axis=1)
        segments = jnp.concatenate([source.segments, target.segments], axis=1)
        positions = jnp.concatenate([source.positions, before + target.positions], axis=1)
        x, mask = self.embedding(tokens, positions, train=train), Mask(segments, segments, causal=True)
        angles = self._angles(positions)

        def layer(decoder: CausalLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return decoder(x, mask, angles, train=train), None

        y = scan_layers(self.config, layer, self.decoder, x, None)[0][:, source.tokens.shape[1] :]
        return self._finished(y)

    def encode(self, source: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S] -> the embeddings [B S D] that `start` feeds: there is no encoder."""
        return self.embedding(shift_right(source), source.positions, train=train)

    def start(self, source: Sequences, memory: jax.Array, beams: int, room: int) -> Cache:
        """The cache after all of the source's tokens but the last; see `Transformer.start`."""
        before, last = preceding(source, jnp.ones((len(memory), 1), jnp.int32))
        return super().start(source, memory, beams, room) | {"lengths": before[:, 0], "last": last[:, 0]}

    def _keys_and_values(self, source: Sequences, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The source's own in each layer: keys [N B H k S], values [N B H S v]."""
        mask, angles = Mask(source.segments, source.segments, causal=True), self._angles(source.positions)

        def layer(decoder: CausalLayer, x: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            keys, values = decoder.self_attention.keys_and_values(decoder.residual_1.before(x), angles)
            return decoder(x, mask, angles, train=False), (
                jnp.einsum("BSHk->BHkS", keys),
                jnp.einsum("BSHv->BHSv", values),
            )

        return scan_layers(self.config, layer, self.decoder, memory, None)[1]

    def step(self, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds the last token of every hypothesis, [B K], PAD before the first -> (next logits [B K V], cache)."""
        return super().step(cache, jnp.where(tokens == PAD, cache["last"][:, None], tokens))


class CausalLayer(EncoderLayer):
    """Masked self-attention, then feed-forward: an encoder's layer whose mask is causal."""

    def step(
        self,
        y: jax.Array,
        index: jax.Array,
        kept: Cache,
        seen: jax.Array,
        memory_seen: jax.Array,
        angles: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One position of every hypothesis, y [B K D], which looks at its source and its past: see `DecoderLayer`."""
        inner = self.residual_1.before(y)
        keys, values = self.self_attention.remembered(inner, index, kept, angles)
        memory_seen = jnp.broadcast_to(memory_seen, (*seen.shape[:2], memory_seen.shape[2]))
        everything = (
            jnp.concatenate([kept["memory_keys"], keys], axis=3),
            jnp.concatenate([kept["memory_values"], values], axis=2),
            jnp.concatenate([memory_seen, seen], axis=2),
        )
        y = self.residual_1(y, self.self_attention.step(inner, *everything, angles), train=False)
        return self.residual_2(y, self.feed_forward(self.residual_2.before(y)), train=False), (keys, values)


def preceding(source: Sequences, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the source of each position's segment: how many tokens it has, and its last one, PAD if it has none.

    source [B S], segments [B T] -> two of [B T].
    """
    own = (segments[:, :, None] == source.segments[:, None]) & (source.segments != 0)[:, None]
    before = own.sum(-1)
    ends = own & (source.positions[:, None] + 1 == before[..., None])
    return before, jnp.where(ends, source.tokens[:, None], PAD).sum(-1)
