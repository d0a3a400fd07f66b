"""The Transformer of "Attention Is All You Need" (https://arxiv.org/abs/1706.03762).

The file reads in the order of the paper's section 3. Axis letters are those of `t2t.sharding`.

Departure: activations and products are bfloat16 unless an experiment says otherwise; the paper has single precision.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import PAD, Sequences
from t2t.errors import UserError
from t2t.knobs import Count, Positive, Probability, Range, Whole
from t2t.models.attention import Mask, attend, attention
from t2t.models.dropout import Dropout
from t2t.models.products import add_bias, einsum, letters, linear
from t2t.sharding import constrain, named, unboxed

Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The columns of Table 3 under their names there; the defaults are its row "base"."""

    vocab_size: Annotated[int, Range(low=4)] = 37_000  # V: pieces of both sides; paper: 37,000 EN-DE, 32,000 EN-FR
    target_vocab_size: Whole = 0  # V: tokens of targets with a vocabulary of their own; 0: shared, as in the paper
    num_layers: Count = 6  # N: layers of the encoder, and of the decoder; paper: 6
    decoder_layers: Whole = 0  # layers of the decoder, where not as many as of the encoder; 0, paper: as many
    d_model: Count = 512  # d_model: width of embeddings and of every sub-layer's output; paper: 512, big 1024
    d_ff: Count = 2048  # d_ff: inner width of the feed-forward layer; paper: 2048, big 4096
    num_heads: Count = 8  # h: attention heads; paper: 8, big 16
    d_k: Count = 64  # d_k: width of a head's queries and keys; paper: 64
    d_v: Count = 64  # d_v: width of a head's values; paper: 64
    p_drop: Probability = 0.1  # P_drop: residual dropout, and dropout on embedding + position; paper: 0.1, big 0.3
    p_attention: Probability = 0.0  # P of dropout on attention weights; paper: named for parsing only (section 6.3)
    positions: Literal["sinusoid", "learned", "rope"] = "sinusoid"  # PE (3.5); paper: sinusoid, learned in row (E)
    max_length: Count = 1024  # tokens: rows of the table of learned positions
    norm: Literal["post", "pre"] = "post"  # LayerNorm after the residual sum, or before the sub-layer; paper: post
    attention: Literal["dense", "blocked", "fused"] = "dense"  # how equation (1) is computed; fused needs a GPU or TPU
    attention_span: Whole = 0  # r: places that a position sees in restricted self-attention (Table 1); 0, paper: all
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations and products; weights, sums, norms are float32
    activation: Literal["relu", "swish", "gelu"] = "relu"  # of the feed-forward layer; paper: relu, max(0, x)
    bias: bool = False  # b added by the four projections of attention; paper: none
    output_bias: bool = False  # b added to the logits; paper: none
    projection: Literal["shared", "own"] = "shared"  # the matrix before the softmax: that of targets, or one of its own
    start: Literal["zero", "padding"] = "zero"  # what outputs begin from: the zero vector, or the embedding of padding
    norm_epsilon: Positive = 1e-6  # ε added to the variance by layer normalisation
    unroll: Count = 1  # layers: copies of a layer in the compiled loop over layers; more runs faster, compiles slower

    def __post_init__(self) -> None:
        if self.positions == "sinusoid" and self.d_model % 2:
            raise UserError(f"--model.d_model must be even for sinusoids, not {self.d_model}")
        if self.positions == "rope" and self.d_k % 2:
            raise UserError(f"--model.d_k must be even for rotary positions, not {self.d_k}")
        if self.p_attention and (self.attention != "dense" or self.attention_span):
            raise UserError(
                "--model.p_attention drops attention weights, so it needs --model.attention dense and "
                f"--model.attention_span 0, not {self.attention} and {self.attention_span}"
            )

    @property
    def decoder_depth(self) -> int:
        """N of the decoder."""
        return self.decoder_layers or self.num_layers

    @property
    def longest(self) -> int | None:
        """Tokens that a sentence may have: the rows of the learned positions; others go on for ever."""
        return self.max_length if self.positions == "learned" else None

    def build(self) -> "Transformer":
        """The module; its parameters are made by `init` and passed to `apply`."""
        return Transformer(self)


# ------------------------------------------------------------------------------ 3.1 Encoder and decoder stacks


class Transformer(nn.Module):
    """Figure 1: source and target tokens to logits for every target position.

    Training calls the module. Decoding calls `encode` and `start` once, then `step` for each token, and carries an
    explicit cache whose axes `cache_axes` names.
    """

    config: TransformerConfig

    # The decoding cache, a letter an axis; of what has `H` there is an array a layer. A step writes the keys and values
    # of a sentence's K hypotheses into the next K places of `T`, from `index` on, where they stay: `seen` says which
    # places are a hypothesis's own past. `lengths`: tokens so far. The memory's have no `K`: a sentence's hypotheses
    # share them. `layers`, `projection`: the weights, taken apart and made `dtype` once, not every step.
    cache_axes = {
        "index": "",
        "lengths": "B",
        "seen": "BKT",
        "keys": "BHkT",
        "values": "BHTv",
        "memory_keys": "BHkS",
        "memory_values": "BHSv",
        "memory_segments": "BS",
        "layers": "",
        "projection": "VD",
    }

    def setup(self) -> None:
        # Two vocabularies, two matrices: then the second is that of targets and of the projection before the softmax.
        c, own = self.config, self.config.target_vocab_size
        targets = functools.partial(
            Embedding, c, bias=c.output_bias, own=c.projection == "own", padding=c.start == "padding"
        )
        self.embedding = Embedding(c, c.vocab_size) if own else targets(c.vocab_size)
        self.target_embedding = targets(own) if own else self.embedding
        self.encoder = EncoderLayer(self.config)  # one layer, scanned: its weights are stacked with `N` in front
        self.decoder = DecoderLayer(self.config)
        if self.config.norm == "pre":  # each layer's last sum leaves it without one
            self.encoder_norm, self.decoder_norm = Norm(self.config), Norm(self.config)

    def __call__(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> float32 logits [B T V]: position t predicts target token t."""
        return self.logits(self.hidden(source, target, train=train))

    def hidden(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> the decoder's output [B T D], which `logits` takes."""
        memory = self.encode(source, train=train)
        y = self.target_embedding(shift_right(target), target.positions, train=train)
        self_mask = Mask(target.segments, target.segments, causal=True, span=self.config.attention_span)
        memory_mask = Mask(target.segments, source.segments)
        angles = self._angles(target.positions)

        def layer(decoder: DecoderLayer, y: jax.Array, _: None) -> tuple[jax.Array, None]:
            return decoder(y, self_mask, memory, memory_mask, angles, train=train), None

        depth = self.config.decoder_depth
        return self._finished(scan_layers(self.config, layer, self.decoder, y, None, depth)[0])

    def logits(self, y: jax.Array) -> jax.Array:
        """Y [B T D] -> float32 logits [B T V]."""
        return self.target_embedding.logits(y)

    def encode(self, source: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S] -> memory [B S D], the encoder's output."""
        x = self.embedding(source.tokens, source.positions, train=train)
        mask = Mask(source.segments, source.segments, span=self.config.attention_span)
        angles = self._angles(source.positions)

        def layer(encoder: EncoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return encoder(x, mask, angles, train=train), None

        x, _ = scan_layers(self.config, layer, self.encoder, x, None)
        return self.encoder_norm.normed(x) if self.config.norm == "pre" else x

    def start(self, source: Sequences, memory: jax.Array, beams: int, room: int) -> Cache:
        """The cache before the first token, for `beams` hypotheses a sentence, with room for `room` tokens of each."""
        c, b, places = self.config, memory.shape[0], beams * room
        kept = kept_type(c.dtype)
        memory_keys, memory_values = (x.astype(kept) for x in self._keys_and_values(source, memory))
        return {
            "index": jnp.zeros((), jnp.int32),
            "lengths": jnp.zeros(b, jnp.int32),
            "seen": jnp.zeros((b, beams, places), bool),
            "keys": tuple(jnp.zeros((c.decoder_depth, b, c.num_heads, c.d_k, places), kept)),
            "values": tuple(jnp.zeros((c.decoder_depth, b, c.num_heads, places, c.d_v), kept)),
            "memory_keys": tuple(memory_keys),
            "memory_values": tuple(memory_values),
            "memory_segments": source.segments,
            "layers": taken_apart(self.decoder.variables["params"], c.decoder_depth, c.dtype),
            "projection": self.target_embedding.before_softmax().astype(c.dtype),
        }

    def _keys_and_values(self, source: Sequences, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What each layer's step looks at beside a hypothesis's own past: keys [N B H k S], values [N B H S v]."""

        def layer(decoder: DecoderLayer, carry: None, _: None) -> tuple[None, tuple[jax.Array, jax.Array]]:
            keys, values = decoder.cross_attention.keys_and_values(memory)
            return carry, (jnp.einsum("BSHk->BHkS", keys), jnp.einsum("BSHv->BHSv", values))

        return scan_layers(self.config, layer, self.decoder, None, None, self.config.decoder_depth)[1]

    def step(self, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds the last token of every hypothesis, [B K], PAD before the first -> (next logits [B K V], cache)."""
        index, (b, k, places) = cache["index"], cache["seen"].shape
        lengths = jnp.tile(cache["lengths"][:, None], (1, k))
        length = places + cache["memory_segments"].shape[1]  # a token has a place of its own, or stands in the source
        y = self.target_embedding(tokens, lengths, train=False, length=length)
        angles = self._angles(lengths)
        own = jnp.tile(jnp.eye(k, dtype=bool), (b, 1, 1))
        seen = past = jax.lax.dynamic_update_slice_in_dim(cache["seen"], own, index, axis=2)
        if self.config.attention_span:  # the last of a hypothesis's places, which are in the order of its tokens
            seen = past & (past.cumsum(-1) > past.sum(-1, keepdims=True) - self.config.attention_span)
        memory_seen = (cache["memory_segments"] != 0)[:, None, :]  # [B 1 S]
        keys, values = [], []
        layer = type(self.decoder)(self.config, parent=None)
        for i, weights in enumerate(cache["layers"]):  # no scan: it would copy weights and cache for every token
            kept = {name: cache[name][i] for name in ("keys", "values", "memory_keys", "memory_values")}
            y, (new_keys, new_values) = layer.apply(
                {"params": weights}, y, index, kept, seen, memory_seen, angles, method="step"
            )
            keys.append(new_keys)
            values.append(new_values)
        cache = cache | {"index": index + k, "lengths": cache["lengths"] + 1, "seen": past}
        y = self._finished(y)
        logits = self.target_embedding.logits(y, cache["projection"])
        return logits, cache | {"keys": tuple(keys), "values": tuple(values)}

    def _finished(self, y: jax.Array) -> jax.Array:
        """What the decoder's last layer gives, [B T D], as its output: with pre-LN a norm is still due."""
        return self.decoder_norm.normed(y) if self.config.norm == "pre" else y

    def _angles(self, positions: jax.Array) -> jax.Array | None:
        """By how much queries and keys at positions [B T] are turned, [B T k/2]; None unless positions are rotary."""
        return rotary_angles(positions, self.config.d_k) if self.config.positions == "rope" else None


def scan_layers(
    config: Any, body: Callable[..., Any], layer: nn.Module, carry: Any, per_layer: Any, layers: int = 0
) -> Any:
    """Runs `body(layer, carry, slice)` for each of an architecture's `num_layers`, or of `layers`, traced once."""
    scan = nn.scan(
        body,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=layers or config.num_layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: None},  # Linen asks for the mesh axis of `N`: none
    )
    return scan(layer, carry, per_layer)


def taken_apart(stacked: Any, layers: int, dtype: str = "float32") -> tuple[Any, ...]:
    """Parameters with `N` in front as a tree a layer; weights, which are multiplied, are made `dtype`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(unboxed(stacked))
    made = [x.astype(dtype) if path[-1].key == "weight" else x for path, x in leaves]
    return tuple(jax.tree.unflatten(tree, [x[i] for x in made]) for i in range(layers))


class EncoderLayer(nn.Module):
    """Figure 1, left: self-attention, then feed-forward."""

    config: TransformerConfig

    def setup(self) -> None:
        self.self_attention = MultiHeadAttention(self.config)
        self.feed_forward = FeedForward(self.config)
        self.residual_1, self.residual_2 = (Residual(self.config) for _ in range(2))

    def __call__(self, x: jax.Array, mask: Mask, angles: jax.Array | None, *, train: bool) -> jax.Array:
        """X [B S D], angles of rotary positions [B S k/2] -> [B S D]."""
        inner = self.residual_1.before(x)
        keys, values = self.self_attention.keys_and_values(inner, angles)
        x = self.residual_1(x, self.self_attention(inner, keys, values, mask, angles, train=train), train=train)
        return self.residual_2(x, self.feed_forward(self.residual_2.before(x)), train=train)


class DecoderLayer(nn.Module):
    """Figure 1, right: masked self-attention, attention over the encoder's output, feed-forward."""

    config: TransformerConfig

    def setup(self) -> None:
        self.self_attention = MultiHeadAttention(self.config)
        self.cross_attention = MultiHeadAttention(self.config)
        self.feed_forward = FeedForward(self.config)
        self.residual_1, self.residual_2, self.residual_3 = (Residual(self.config) for _ in range(3))

    def __call__(
        self,
        y: jax.Array,
        self_mask: Mask,
        memory: jax.Array,
        memory_mask: Mask,
        angles: jax.Array | None,
        *,
        train: bool,
    ) -> jax.Array:
        """Y [B T D], memory [B S D], angles of rotary positions [B T k/2] -> [B T D]."""
        inner = self.residual_1.before(y)
        keys, values = self.self_attention.keys_and_values(inner, angles)
        y = self.residual_1(y, self.self_attention(inner, keys, values, self_mask, angles, train=train), train=train)
        inner = self.residual_2.before(y)
        keys, values = self.cross_attention.keys_and_values(memory)
        y = self.residual_2(y, self.cross_attention(inner, keys, values, memory_mask, train=train), train=train)
        return self.residual_3(y, self.feed_forward(self.residual_3.before(y)), train=train)

    def step(
        self,
        y: jax.Array,
        index: jax.Array,
        kept: Cache,
        seen: jax.Array,
        memory_seen: jax.Array,
        angles: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One position of every hypothesis, y [B K D], with this layer's part of the cache -> (y, keys and values).

        seen [B K T], memory_seen [B 1 S]: True where a hypothesis may look; index: the first place to write in; angles
        [B K k/2]: of rotary positions.
        """
        inner = self.residual_1.before(y)
        keys, values = self.self_attention.remembered(inner, index, kept, angles)
        y = self.residual_1(y, self.self_attention.step(inner, keys, values, seen, angles), train=False)
        inner = self.residual_2.before(y)
        attended = self.cross_attention.step(inner, kept["memory_keys"], kept["memory_values"], memory_seen)
        y = self.residual_2(y, attended, train=False)
        return self.residual_3(y, self.feed_forward(self.residual_3.before(y)), train=False), (keys, values)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) with a scale and a bias of its own."""

    config: TransformerConfig

    def setup(self) -> None:
        self.scale = self.param("scale", named(nn.initializers.ones, "D"), (self.config.d_model,))
        self.bias = self.param("bias", named(nn.initializers.zeros, "D"), (self.config.d_model,))

    def normed(self, x: jax.Array) -> jax.Array:
        """X [B T D] -> [B T D]."""
        return constrain(
            layer_norm(x, self.scale, self.bias, self.config.norm_epsilon).astype(self.config.dtype), "BTD"
        )


class Residual(Norm):
    """LayerNorm(x + Dropout(Sublayer(x))): the residual connection, with the norm after it.

    Where `norm` is "pre" it is x + Dropout(Sublayer(LayerNorm(x))) of Xiong et al. 2020. The caller computes the
    sub-layer, of `before(x)`.
    """

    def before(self, x: jax.Array) -> jax.Array:
        """What the sub-layer sees of x [B T D]: x itself, or its norm."""
        return self.normed(x) if self.config.norm == "pre" else x

    @nn.compact
    def __call__(self, x: jax.Array, sublayer: jax.Array, *, train: bool) -> jax.Array:
        """X and the sub-layer's output, both [B T D] -> [B T D]."""
        x = x + Dropout(self.config.p_drop)(sublayer, train=train)
        return constrain(x, "BTD") if self.config.norm == "pre" else self.normed(x)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Ba et al. 2016 over the last axis, in float32. x [... D], scale and bias [D] -> [... D]."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


# ------------------------------------------------------------------------------ 3.2 Attention (3.2.1: attention.py)


class MultiHeadAttention(nn.Module):
    """3.2.2: h heads attend in parallel, each through projections of its own; in the paper none has a bias."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        sizes = dict(D=c.d_model, H=c.num_heads, k=c.d_k, v=c.d_v)
        keys, values, output = ("Hk", "Hv", "D") if c.bias else ("", "", "")
        self.query = Linear("BTD,DHk->BTHk", sizes, c.dtype, keys)
        self.key = Linear("BSD,DHk->BSHk", sizes, c.dtype, keys)
        self.value = Linear("BSD,DHv->BSHv", sizes, c.dtype, values)
        self.output = Linear("BTHv,HvD->BTD", sizes, c.dtype, output)
        self.dropout = Dropout(c.p_attention)

    def keys_and_values(self, x: jax.Array, angles: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """X [B S D], angles of rotary positions [B S k/2] -> keys [B S H k], values [B S H v]."""
        return rotated(self.key(x), angles), self.value(x)

    def remembered(
        self, x: jax.Array, index: jax.Array, kept: Cache, angles: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The keys [B H k T] and values [B H T v] of `kept`, with those of x [B K D] in the places from `index` on."""
        keys, values = self.keys_and_values(x, angles)
        keys, values = jnp.einsum("BKHk->BHkK", keys), jnp.einsum("BKHv->BHKv", values)
        return (
            jax.lax.dynamic_update_slice_in_dim(kept["keys"], keys.astype(kept["keys"].dtype), index, axis=3),
            jax.lax.dynamic_update_slice_in_dim(kept["values"], values.astype(kept["values"].dtype), index, axis=2),
        )

    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        mask: Mask,
        angles: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Queries from x [B T D], turned by angles [B T k/2], over keys [B S H k] and values [B S H v] -> [B T D].

        The weights [B H T S] leave through Flax's collection "intermediates" when the caller makes it mutable. Then
        they have to be there all at once, and equation (1) is computed as it stands.
        """

        def change(weights: jax.Array) -> jax.Array:
            self.sow("intermediates", "weights", weights)
            return self.dropout(weights, train=train)

        q = rotated(self.query(x), angles)
        if self.is_mutable_collection("intermediates"):
            return self.output(attention(q, keys, values, mask, change))
        return self.output(attend(self.config.attention, q, keys, values, mask, change))

    def step(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array, angles: jax.Array | None = None
    ) -> jax.Array:
        """Equation (1) while decoding: queries from x [B K D] over keys [B H k S] and values [B H S v] -> [B K D].

        seen [B K S] or [B 1 S]: True where a hypothesis may look. As plain products of matrices in these layouts the
        two small products are several times faster on a CPU than as those of `attention`.
        """
        q = rotated(self.query(x), angles).swapaxes(1, 2).astype(keys.dtype)  # [B H K k]
        scores = einsum("BHKk,BHkS->BHKS", q, keys, "float32") / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min))
        attended = einsum("BHKS,BHSv->BHKv", weights.astype(values.dtype), values, x.dtype)
        return self.output(attended.swapaxes(1, 2))


def kept_type(dtype: str) -> str:
    """Of keys and values that are kept while decoding: float32 on a CPU, where small products are faster in it.

    To write into an array of bfloat16 XLA makes float32 of all of it there.
    """
    return "float32" if jax.default_backend() == "cpu" else dtype


class Linear(nn.Module):
    """A linear map written as an einsum: its letters give the weight's shape, Xavier fans and layout."""

    equation: str
    sizes: dict[str, int]
    dtype: str
    bias: str = ""  # letters of the bias; "" for none

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x with the letters of the equation's first term -> those of its result."""
        x_axes, w_axes, y_axes = letters(self.equation)
        fan_in = [i for i, a in enumerate(w_axes) if a in x_axes]
        fan_out = [i for i, a in enumerate(w_axes) if a not in x_axes]
        xavier = nn.initializers.glorot_uniform(in_axis=fan_in, out_axis=fan_out)
        weight = self.param("weight", named(xavier, w_axes), [self.sizes[a] for a in w_axes])
        y: Any = linear(self.equation, self.dtype, x, weight)
        if self.bias:
            bias = self.param("bias", named(nn.initializers.zeros, self.bias), [self.sizes[a] for a in self.bias])
            y = add_bias(y, bias)
        return constrain(y, y_axes)


# ------------------------------------------------------------------------------ 3.3 Feed-forward networks


# Swish: Ramachandran et al. 2017; GELU: Hendrycks and Gimpel 2016, by the error function.
ACTIVATIONS = {"relu": jax.nn.relu, "swish": jax.nn.swish, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


class FeedForward(nn.Module):
    """Equation (2): max(0, x W1 + b1) W2 + b2, the same at every position; other activations in place of the max."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B T D] -> [B T D]."""
        sizes = dict(D=self.config.d_model, F=self.config.d_ff)
        inner = Linear("BTD,DF->BTF", sizes, self.config.dtype, bias="F", name="inner")(x)
        inner = ACTIVATIONS[self.config.activation](inner)
        return Linear("BTF,FD->BTD", sizes, self.config.dtype, bias="D", name="outer")(inner)


# ------------------------------------------------------------------------------ 3.4 Embeddings and softmax


class Embedding(nn.Module):
    """One matrix for source tokens, target tokens and the projection before the softmax; or one of two: see above."""

    config: Any  # an architecture's: d_model, p_drop, dtype, and `positions`; max_length where these are learned
    vocab_size: int
    bias: bool = False  # added to the logits
    own: bool = False  # the projection has a matrix of its own
    padding: bool = False  # PAD has an embedding; else it embeds to zero

    def setup(self) -> None:
        c = self.config
        init = named(nn.initializers.normal(c.d_model**-0.5), "VD")
        self.table = self.param("table", init, (self.vocab_size, c.d_model))
        if self.bias:
            self.output_bias = self.param("output_bias", named(nn.initializers.zeros, "V"), (self.vocab_size,))
        if self.own:
            self.projection = self.param("projection", init, (self.vocab_size, c.d_model))
        if c.positions == "learned":
            init = named(nn.initializers.normal(c.d_model**-0.5), "TD")
            self.positions = self.param("positions", init, (c.max_length, c.d_model))
        self.dropout = Dropout(c.p_drop)

    def __call__(self, tokens: jax.Array, positions: jax.Array, *, train: bool, length: int = 0) -> jax.Array:
        """Tokens [B T] at `positions` [B T], all below `length` (T unless given) -> [B T D].

        The embedding times √d_model, plus the position's row if positions have rows, then dropout.
        """
        c = self.config
        table = constrain(self.table, "VD")  # whole rows, so that looking one up stays where its batch is
        embeds = jnp.ones_like(tokens) if self.padding else tokens != PAD
        x = constrain(table[tokens], "BTD") * (math.sqrt(c.d_model) * embeds)[..., None]
        if c.positions in ("sinusoid", "learned"):
            x = x + self._rows(length or tokens.shape[1])[positions]
        return constrain(self.dropout(x, train=train).astype(c.dtype), "BTD")

    def _rows(self, length: int) -> jax.Array:
        """A row a position. Learned ones may be fewer than `length`: only padding may stand beyond them (`longest`)."""
        if self.config.positions == "sinusoid":
            return jnp.asarray(sinusoids(length, self.config.d_model))
        return self.positions

    def before_softmax(self) -> jax.Array:
        """The matrix that makes logits, [V D]."""
        return self.projection if self.own else self.table

    def logits(self, y: jax.Array, matrix: jax.Array | None = None) -> jax.Array:
        """Y [B T D] -> float32 logits [B T V]: y times the matrix, no scale, and in the paper no bias.

        `matrix` is that of `before_softmax` as it is kept while decoding.
        """
        matrix = self.before_softmax() if matrix is None else matrix
        logits: Any = linear("BTD,VD->BTV", "float32", y, matrix)
        return constrain(logits + self.output_bias if self.bias else logits, "BTV")


def shift_right(target: Sequences) -> jax.Array:
    """The decoder's input [B T]: each sentence one position later, so that it begins with PAD, the zero vector."""
    before = jnp.pad(target.tokens, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(target.positions == 0, PAD, before)


# ------------------------------------------------------------------------------ 3.5 Positional encoding


@functools.lru_cache(maxsize=32)
def sinusoids(length: int, d_model: int) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(same): float32 [length, d_model]."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, d_model, 2) / d_model)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model).astype(np.float32)


def rotary_angles(positions: jax.Array, d_k: int) -> jax.Array:
    """Rotary positions (Su et al. 2021): pos / 10000^(2i / d_k) for each pair i of a head's d_k numbers.

    positions [B T] -> float32 [B T k/2].
    """
    return positions[..., None] / 10_000 ** (np.arange(0, d_k, 2, dtype=np.float32) / d_k)


def rotated(x: jax.Array, angles: jax.Array | None) -> jax.Array:
    """Queries or keys x [B T H k], each pair (2i, 2i + 1) turned by its angle [B T k/2]; x itself where there is none.

    The product of a query and a key so turned depends on how far apart their positions are, and not on where they are.
    """
    if angles is None:
        return x
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
