"""ConvS2S, "Convolutional Sequence to Sequence Learning" (Gehring et al. 2017, https://arxiv.org/abs/1705.03122).

One of the two networks that the Transformer is compared with. The file reads in the order of that paper's section 3;
where its text leaves a place open, what stands there is that of the authors' code (fairseq). Axis letters are those of
`t2t.sharding`.

Departure: all layers have one width and attend; the paper's largest grow with depth.
Departure: source, target and softmax share one matrix, and the softmax has no bias, as in the Transformer beside it.
Departure: gradients of the encoder are not divided by the number of attentions (section 3.4): Adam, which every
experiment here trains with, makes the same steps whatever a gradient is multiplied by.
"""

import dataclasses
import math
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2t.batch import PAD, Sequences
from t2t.knobs import Count, Probability, Range, Whole
from t2t.models.dropout import Dropout
from t2t.models.products import add_bias, letters, linear, product
from t2t.models.transformer import Mask, scan_layers, shift_right, taken_apart
from t2t.sharding import constrain, named

Cache = dict[str, Any]

HALF = math.sqrt(0.5)  # section 3.4: times the sum of two arrays of one variance, so that theirs is kept


@dataclasses.dataclass(frozen=True)
class ConvolutionalConfig:
    """The sizes of Gehring et al. 2017, section 4.2, under their names there; the defaults are of its EN-DE model."""

    vocab_size: Annotated[int, Range(low=4)] = 37_000  # V: pieces of both sides
    target_vocab_size: Whole = 0  # V: tokens of targets with a vocabulary of their own; 0: shared
    num_layers: Count = 15  # N: layers of the encoder, and of the decoder; ConvS2S: 15
    d_model: Count = 512  # f: width of embeddings and of what is attended to; ConvS2S: 512
    d_hidden: Count = 512  # d: hidden units of every layer; ConvS2S: 512, more in its last 5 layers
    kernel_width: Count = 3  # k: positions that a convolution sees; ConvS2S: 3, 1 in its last 2 layers
    p_drop: Probability = 0.1  # P of dropout on embeddings, on the input of convolutions and before the softmax
    max_length: Count = 1024  # tokens: rows of the table of learned positions
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations and products; weights and sums are float32
    unroll: Count = 1  # layers: copies of a layer in the compiled loop over layers; more runs faster, compiles slower

    @property
    def longest(self) -> int | None:
        """Tokens that a sentence may have: the rows of the learned positions."""
        return self.max_length

    def build(self) -> "Convolutional":
        """The module; its parameters are made by `init` and passed to `apply`."""
        return Convolutional(self)


class Memory(NamedTuple):
    """What a decoder attends to, section 3.3: keys say what a position has become, values also which word it was."""

    keys: jax.Array  # [B S D]: z, the encoder's output
    values: jax.Array  # [B S D]: z and the source's embedding


class Convolutional(nn.Module):
    """Figure 1: source and target tokens to logits for every target position.

    Training calls the module. Decoding calls `encode` and `start` once, then `step` for each token, and carries an
    explicit cache whose axes `cache_axes` names.
    """

    config: ConvolutionalConfig

    # The decoding cache, a letter an axis; of what has `W` there is an array a layer: the inputs that its next
    # convolution sees beside the new one. `lengths`: tokens so far. The memory's have no `K`: a sentence's hypotheses
    # share them. `layers`: the weights, taken apart once, not every step.
    cache_axes = {
        "lengths": "B",
        "inputs": "BKWC",
        "memory_keys": "BSD",
        "memory_values": "BSD",
        "memory_segments": "BS",
        "layers": "",
    }

    def setup(self) -> None:
        c = self.config
        sizes, retained = dict(D=c.d_model, F=c.d_hidden), 1 - c.p_drop
        self.embedding = Embedding(c, c.vocab_size)
        self.target_embedding = Embedding(c, c.target_vocab_size) if c.target_vocab_size else self.embedding
        self.source_input = Affine("BSD,DF->BSF", sizes, c.dtype, retained)
        self.target_input = Affine("BTD,DF->BTF", sizes, c.dtype, retained)
        self.encoder = EncoderLayer(c)  # one layer, scanned: its weights are stacked with `N` in front
        self.decoder = DecoderLayer(c)
        self.source_output = Affine("BSF,FD->BSD", sizes, c.dtype)
        self.target_output = Affine("BTF,FD->BTD", sizes, c.dtype)
        self.dropout = Dropout(c.p_drop)

    def __call__(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> float32 logits [B T V]: position t predicts target token t."""
        return self.logits(self.hidden(source, target, train=train))

    def hidden(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> the decoder's output [B T D], which `logits` takes."""
        memory = self.encode(source, train=train)
        embedded = self.target_embedding(shift_right(target), target.positions, train=train)
        width = self.config.kernel_width
        near = neighbours(target.segments, width, width - 1)
        visible = Mask(target.segments, source.segments).dense()[:, 0]

        def layer(decoder: DecoderLayer, y: jax.Array, _: None) -> tuple[jax.Array, None]:
            return decoder(y, near, embedded, memory, visible, train=train), None

        y, _ = scan_layers(self.config, layer, self.decoder, self.target_input(embedded), None)
        return self.dropout(self.target_output(y), train=train)

    def logits(self, y: jax.Array) -> jax.Array:
        """Y [B T D] -> float32 logits [B T V]."""
        return self.target_embedding.logits(y)

    def encode(self, source: Sequences, *, train: bool = False) -> Memory:
        """Source [B S] -> memory, two arrays [B S D]."""
        embedded = self.embedding(source.tokens, source.positions, train=train)
        width = self.config.kernel_width
        near = neighbours(source.segments, width, width // 2)

        def layer(encoder: EncoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return encoder(x, near, train=train), None

        x, _ = scan_layers(self.config, layer, self.encoder, self.source_input(embedded), None)
        keys = self.source_output(x)
        return Memory(keys, (keys + embedded) * HALF)

    def start(self, source: Sequences, memory: Memory, beams: int, room: int) -> Cache:
        """The cache before the first token, for `beams` hypotheses a sentence; it has room for any number of tokens."""
        c, b = self.config, memory.keys.shape[0]
        nothing = jnp.zeros((c.num_layers, b, beams, c.kernel_width - 1, c.d_hidden), c.dtype)
        return {
            "lengths": jnp.zeros(b, jnp.int32),
            "inputs": tuple(nothing),
            "memory_keys": memory.keys,
            "memory_values": memory.values,
            "memory_segments": source.segments,
            "layers": taken_apart(self.decoder.variables["params"], c.num_layers),
        }

    def step(self, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds the last token of every hypothesis, [B K], PAD before the first -> (next logits [B K V], cache)."""
        positions = jnp.broadcast_to(cache["lengths"][:, None], tokens.shape)
        embedded = self.target_embedding(tokens, positions, train=False)
        memory = Memory(cache["memory_keys"], cache["memory_values"])
        visible = (cache["memory_segments"] != 0)[:, None, :]  # [B 1 S]
        y, inputs = self.target_input(embedded), []
        layer = DecoderLayer(self.config, parent=None)
        for weights, before in zip(cache["layers"], cache["inputs"], strict=True):
            y, seen = layer.apply({"params": weights}, y, before, embedded, memory, visible, method="step")
            inputs.append(seen)
        cache = cache | {"lengths": cache["lengths"] + 1, "inputs": tuple(inputs)}
        return self.logits(self.target_output(y)), cache


# ------------------------------------------------------------------------------ 3.1 Position embeddings


class Embedding(nn.Module):
    """Words and positions; the matrix of words is also the projection before the softmax."""

    config: ConvolutionalConfig
    vocab_size: int

    def setup(self) -> None:
        c, normal = self.config, nn.initializers.normal(0.1)
        self.table = self.param("table", named(normal, "VD"), (self.vocab_size, c.d_model))
        self.positions = self.param("positions", named(normal, "TD"), (c.max_length, c.d_model))
        self.dropout = Dropout(c.p_drop)

    def __call__(self, tokens: jax.Array, positions: jax.Array, *, train: bool) -> jax.Array:
        """Tokens [B T] at `positions` [B T] -> [B T D]: w + p, then dropout; the word PAD is zero."""
        table = constrain(self.table, "VD")  # whole rows, so that looking one up stays where its batch is
        rows = constrain(self.positions, "TD")[positions]
        x = constrain(table[tokens], "BTD") * (tokens != PAD)[..., None] + constrain(rows, "BTD")
        return constrain(self.dropout(x, train=train).astype(self.config.dtype), "BTD")

    def logits(self, y: jax.Array) -> jax.Array:
        """Y [B T D] -> float32 logits [B T V]: y times the matrix."""
        return constrain(linear("BTD,VD->BTV", "float32", y, self.table), "BTV")


# ------------------------------------------------------------------------------ 3.2 Convolutional blocks


def around(x: jax.Array, width: int, before: int) -> jax.Array:
    """X [B T ...] -> [B T W ...]: at each position the `width` from `before` back on, zero beyond the ends."""
    padded = jnp.pad(x, [(0, 0), (before, width - 1 - before)] + [(0, 0)] * (x.ndim - 2))
    return jnp.stack([padded[:, w : w + x.shape[1]] for w in range(width)], axis=2)


def neighbours(segments: jax.Array, width: int, before: int) -> jax.Array:
    """Which of the positions `around` each are of its own sentence: segments [B T] -> [B T W]."""
    return around(segments, width, before) == segments[..., None]


def window(x: jax.Array, near: jax.Array, before: int) -> jax.Array:
    """What a kernel sees at each position: x [B T F], near [B T W] -> [B T W C], zero outside of its sentence."""
    return jnp.where(near[..., None], around(constrain(x, "BTC"), near.shape[-1], before), 0)


class GatedConvolution(nn.Module):
    """v(W x + b), v([A B]) = A ⊗ σ(B) (gated linear units, Dauphin et al. 2016), x what the kernel sees."""

    config: ConvolutionalConfig

    @nn.compact
    def __call__(self, window: jax.Array) -> jax.Array:
        """Window [B T W C] -> [B T F]."""
        c = self.config
        sizes = dict(W=c.kernel_width, C=c.d_hidden, G=2, F=c.d_hidden)
        # The gate leaves a quarter of the variance (section 3.5).
        y = Affine("BTWC,WCGF->BTGF", sizes, c.dtype, 4 * (1 - c.p_drop), name="kernel")(window)
        return constrain(y[:, :, 0] * jax.nn.sigmoid(y[:, :, 1]), "BTF")


class EncoderLayer(nn.Module):
    """A convolution over the positions around each, and a residual connection."""

    config: ConvolutionalConfig

    def setup(self) -> None:
        self.convolution = GatedConvolution(self.config)
        self.dropout = Dropout(self.config.p_drop)

    def __call__(self, x: jax.Array, near: jax.Array, *, train: bool) -> jax.Array:
        """X [B S F], near [B S W]: see `neighbours` -> [B S F]."""
        y = self.convolution(window(self.dropout(x, train=train), near, self.config.kernel_width // 2))
        return constrain((x + y) * HALF, "BSF")


class DecoderLayer(nn.Module):
    """A convolution over each position and those before it, attention, and a residual connection around both."""

    config: ConvolutionalConfig

    def setup(self) -> None:
        self.convolution = GatedConvolution(self.config)
        self.cross_attention = Attention(self.config)
        self.dropout = Dropout(self.config.p_drop)

    def __call__(
        self,
        y: jax.Array,
        near: jax.Array,
        embedded: jax.Array,
        memory: Memory,
        visible: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Y [B T F], near [B T W]: see `neighbours`, embedded [B T D], visible [B T S] -> [B T F]."""
        seen = window(self.dropout(y, train=train), near, self.config.kernel_width - 1)
        return self._residual(y, seen, embedded, memory, visible)

    def step(
        self, y: jax.Array, before: jax.Array, embedded: jax.Array, memory: Memory, visible: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One position of every hypothesis, y [B K F], with the W-1 inputs before it [B K W-1 C] -> (y, inputs)."""
        seen = jnp.concatenate([before, y[:, :, None]], axis=2)
        return self._residual(y, seen, embedded, memory, visible), seen[:, :, 1:]

    def _residual(
        self, y: jax.Array, seen: jax.Array, embedded: jax.Array, memory: Memory, visible: jax.Array
    ) -> jax.Array:
        h = self.convolution(seen)
        h = (h + self.cross_attention(h, embedded, memory, visible)) * HALF
        return constrain((y + h) * HALF, "BTF")


# ------------------------------------------------------------------------------ 3.3 Multi-step attention


class Attention(nn.Module):
    """One attention of a decoder layer, a single head: softmax(d zᵀ) (z + e), d = W h + b and the last target word."""

    config: ConvolutionalConfig

    def setup(self) -> None:
        c = self.config
        sizes = dict(D=c.d_model, F=c.d_hidden)
        self.query = Affine("BTF,FD->BTD", sizes, c.dtype)
        self.output = Affine("BTD,DF->BTF", sizes, c.dtype)

    def __call__(self, h: jax.Array, embedded: jax.Array, memory: Memory, visible: jax.Array) -> jax.Array:
        """H [B T F], embedded [B T D], visible [B T S] or [B 1 S]: True where a position may look -> [B T F].

        Times √m for m source positions: the variance that a mean of so many loses (section 3.4). The weights
        [B 1 T S] leave through Flax's collection "intermediates" when the caller makes it mutable.
        """
        q = (self.query(h) + embedded) * HALF
        scores = product("BTD,BSD->BTS", "float32", q, memory.keys)
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min))
        self.sow("intermediates", "weights", weights[:, None])
        values = memory.values
        context = product("BTS,BSD->BTD", values.dtype.name, weights.astype(values.dtype), values)
        scale = jnp.sqrt(visible.sum(-1, keepdims=True).astype(context.dtype))
        return self.output(context * scale)


# ------------------------------------------------------------------------------ 3.4, 3.5 Normalisation, initialisation


class Affine(nn.Module):
    """An affine map written as an einsum, with weight normalisation (Salimans & Kingma 2016): W = g V / ‖V‖.

    There is a norm and a bias for each of the map's outputs. At first an output has `gain` times the variance of the
    inputs, whose number is n: V ~ N(0, gain / n), g as large as ‖V‖ is on average. b = 0.
    """

    equation: str
    sizes: dict[str, int]
    dtype: str
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x with the letters of the equation's first term -> those of its result."""
        x_axes, w_axes, y_axes = letters(self.equation)
        summed = [i for i, a in enumerate(w_axes) if a in x_axes]
        kept = "".join(a for a in w_axes if a not in x_axes)
        shape, shape_kept = ([self.sizes[a] for a in axes] for axes in (w_axes, kept))
        normal = nn.initializers.normal(math.sqrt(self.gain / math.prod(shape[i] for i in summed)))
        direction = self.param("direction", named(normal, w_axes), shape)
        norm = self.param("norm", named(nn.initializers.constant(math.sqrt(self.gain)), kept), shape_kept)
        bias = self.param("bias", named(nn.initializers.zeros, kept), shape_kept)
        weight = direction * (norm * jax.lax.rsqrt(jnp.square(direction).sum(summed)))
        y: Any = linear(self.equation, self.dtype, x, weight)
        return constrain(add_bias(y, bias), y_axes)
