"""What the paper replaced: LSTM layers and additive attention, as in GNMT (Wu et al. 2016, arXiv:1609.08144).

The encoder's first layer reads in both directions, all others forward; each layer above a stack's first has a residual
connection around it. The decoder's first layer asks for the context, with its state of the token before (Bahdanau et
al. 2015, arXiv:1409.0473), and every layer of the decoder takes it beside its input. What a layer makes of its inputs
is computed for all time steps at once; only what depends on the step before is in the scan over time. Axis letters are
those of `t2t.sharding`; arrays in a scan are time-major.

Departure from GNMT: each direction of the first layer has half of the width, so that all layers are d_model wide and
all but the first can have a residual connection; GNMT begins with its third.
Departure from GNMT: one embedding, scaled by √d_model, also projects before the softmax, as in the Transformer.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2t.batch import Sequences
from t2t.errors import UserError
from t2t.knobs import Count, Probability, Range, Whole
from t2t.models.dropout import Dropout
from t2t.models.products import einsum, linear, product
from t2t.models.transformer import Embedding, Linear, Mask, shift_right
from t2t.sharding import constrain, named

Cache = dict[str, Any]

GATES = 4  # of a cell: input, forget, candidate, output, in this order along `G`
FORGET_BIAS = 1.0  # added to the forget gate, so that a new network remembers (Jozefowicz et al. 2015)


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """The sizes of GNMT; the defaults are those of its English-to-German model."""

    vocab_size: Annotated[int, Range(low=4)] = 32_000  # V: pieces of both sides; GNMT: 32,000
    target_vocab_size: Whole = 0  # V: tokens of targets with a vocabulary of their own; 0: shared
    num_layers: Count = 8  # N: layers of the encoder, and of the decoder; GNMT: 8
    d_model: Count = 1024  # d_model: width of embeddings, layers and attention; GNMT: 1024
    p_drop: Probability = 0.2  # P of dropout on embeddings and on every layer's output; GNMT: 0.2
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations and products; weights, cells, sums are float32
    unroll: Count = 1  # steps: copies of a time step in the compiled loop over time; more runs faster, compiles slower

    longest = None  # a sentence may have any number of tokens
    positions = "none"  # the order of tokens is the order in which they are read

    def __post_init__(self) -> None:
        if self.d_model % 2:
            raise UserError(f"--model.d_model must be even, half for each direction, not {self.d_model}")

    def build(self) -> "Recurrent":
        """The module; its parameters are made by `init` and passed to `apply`."""
        return Recurrent(self)


class Recurrent(nn.Module):
    """Source and target tokens to logits for every target position, with the methods of `Transformer`."""

    config: RecurrentConfig

    # The decoding cache, a letter an axis; of `hidden` and `cells` there is an array a layer. It has no `T`: all that a
    # hypothesis remembers of its tokens is the state of the decoder.
    cache_axes = {"hidden": "BKD", "cells": "BKF", "memory": "BSD", "memory_keys": "BSF", "memory_segments": "BS"}

    def setup(self) -> None:
        self.embedding = Embedding(self.config, self.config.vocab_size)
        own = self.config.target_vocab_size
        self.target_embedding = Embedding(self.config, own) if own else self.embedding
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> float32 logits [B T V]: position t predicts target token t."""
        return self.logits(self.hidden(source, target, train=train))

    def hidden(self, source: Sequences, target: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S], target [B T] -> the decoder's output [B T D], which `logits` takes."""
        memory = self.encode(source, train=train)
        y = self.target_embedding(shift_right(target), target.positions, train=train)
        return self.decoder(y, target.segments, memory, source.segments, train=train)

    def logits(self, y: jax.Array) -> jax.Array:
        """Y [B T D] -> float32 logits [B T V]."""
        return self.target_embedding.logits(y)

    def encode(self, source: Sequences, *, train: bool = False) -> jax.Array:
        """Source [B S] -> memory [B S D], the encoder's output."""
        x = self.embedding(source.tokens, source.positions, train=train)
        return self.encoder(x, source.segments, train=train)

    def start(self, source: Sequences, memory: jax.Array, beams: int, room: int) -> Cache:
        """The cache before the first token, for `beams` hypotheses a sentence; it has room for any number of tokens."""
        c, b = self.config, memory.shape[0]
        return {
            "hidden": (jnp.zeros((b, beams, c.d_model), c.dtype),) * c.num_layers,
            "cells": (jnp.zeros((b, beams, c.d_model)),) * c.num_layers,
            "memory": memory,
            "memory_keys": self.decoder.cross_attention.key(memory),
            "memory_segments": source.segments,
        }

    def step(self, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds the last token of every hypothesis, [B K], PAD before the first -> (next logits [B K V], cache)."""
        y = self.target_embedding(tokens, jnp.zeros_like(tokens), train=False)
        memory = Memory(cache["memory"], cache["memory_keys"], (cache["memory_segments"] != 0)[:, None])
        y, states = self.decoder.step(y, list(map(State, cache["hidden"], cache["cells"])), memory)
        hidden, cells = zip(*states, strict=True)
        return self.target_embedding.logits(y), cache | {"hidden": hidden, "cells": cells}


# ------------------------------------------------------------------------------ Cells


class State(NamedTuple):
    """What a layer carries from step to step, of K hypotheses a row (in training K is 1)."""

    hidden: jax.Array  # h [B K D], its output
    cells: jax.Array  # float32 c [B K F]


def cell(gates: jax.Array, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gates before their non-linearities [... G F], cells c [... F] of the step before -> h and c [... F], float32."""
    i, f, g, o = (gates[..., n, :] for n in range(GATES))
    cells = jax.nn.sigmoid(f + FORGET_BIAS) * cells + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cells), cells


def advance(gates: jax.Array, weight: jax.Array, before: State) -> State:
    """One step: gates [B K G F] as far as the inputs make them, the recurrent weight [D G F]."""
    gates = gates + _product("BKD,DGF->BKGF", before.hidden, weight)
    hidden, cells = cell(constrain(gates, "BKGF"), before.cells)
    return State(constrain(hidden.astype(before.hidden.dtype), "BKD"), constrain(cells, "BKF"))


def _product(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    return einsum(equation, x, weight.astype(x.dtype), "float32")


def kept(segments: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Segments [B T] -> [T B 1 1]: True where the step before (after, if `reverse`) is of the same sentence."""
    same = segments.T[1:] == segments.T[:-1]
    whole = jnp.pad(same, ((0, 1), (0, 0)) if reverse else ((1, 0), (0, 0)))
    return whole[: segments.shape[1], :, None, None]  # of texts without sources none


def reset(state: State, keep: jax.Array) -> State:
    """The state, and zeros where a new sentence begins: keep [B 1 1]."""
    return State(*(jnp.where(keep, x, 0) for x in state))


class LSTM(nn.Module):
    """A layer of cells with a forget gate (Gers et al. 2000); a bias for each gate, no peepholes."""

    config: RecurrentConfig
    units: int  # F: cells
    contexts: bool = False  # takes a context beside its input

    def setup(self) -> None:
        sizes = dict(D=self.config.d_model, G=GATES, F=self.units)
        self.input = Linear("TBD,DGF->TBGF", sizes, self.config.dtype, bias="GF")
        xavier = named(nn.initializers.glorot_uniform(in_axis=0, out_axis=(1, 2)), "DGF")
        if self.contexts:
            self.context = self.param("context", xavier, (self.config.d_model, GATES, self.units))
        self.recurrent = self.param("recurrent", xavier, (self.units, GATES, self.units))

    def gates(self, x: jax.Array, contexts: jax.Array | None = None) -> jax.Array:
        """What inputs x and contexts, both [B T D], add to the gates of all steps: [T B G F]."""
        gates = self.input(x.swapaxes(0, 1))
        if contexts is None:
            return gates
        more: Any = linear("TBD,DGF->TBGF", self.config.dtype, contexts.swapaxes(0, 1), self.context)
        return gates + more

    def __call__(
        self, x: jax.Array, segments: jax.Array, contexts: jax.Array | None = None, *, reverse: bool = False
    ) -> jax.Array:
        """Inputs x [B T D], segments [B T], contexts [B T D] -> [B T F]. Each sentence begins with a state of zeros."""

        def step(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            gates, keep = now
            state = advance(gates[:, None], self.recurrent, reset(state, keep))
            return state, state.hidden[:, 0]

        inputs = self.gates(x, contexts), kept(segments, reverse=reverse)
        begin = zeros(len(x), self.units, self.config.dtype)
        _, hidden = jax.lax.scan(step, begin, inputs, reverse=reverse, unroll=self.config.unroll)
        return constrain(hidden.swapaxes(0, 1), "BTD")

    def step(self, x: jax.Array, state: State, contexts: jax.Array) -> State:
        """One step of every hypothesis: x and contexts [B K D]."""
        return advance(self.gates(x, contexts).swapaxes(0, 1), self.recurrent, state)


def zeros(rows: int, units: int, dtype: str) -> State:
    """The state before a sentence."""
    return State(jnp.zeros((rows, 1, units), dtype), jnp.zeros((rows, 1, units)))


# ------------------------------------------------------------------------------ Encoder


class Encoder(nn.Module):
    """A layer in both directions, then N - 1 forward."""

    config: RecurrentConfig

    def setup(self) -> None:
        c = self.config
        self.forward, self.backward = (LSTM(c, c.d_model // 2) for _ in range(2))
        self.layers = [LSTM(c, c.d_model) for _ in range(c.num_layers - 1)]
        self.dropouts = [Dropout(c.p_drop) for _ in range(c.num_layers)]

    def __call__(self, x: jax.Array, segments: jax.Array, *, train: bool) -> jax.Array:
        """Embedded x [B S D], segments [B S] -> [B S D]."""
        both = [self.forward(x, segments), self.backward(x, segments, reverse=True)]
        x = self.dropouts[0](constrain(jnp.concatenate(both, axis=-1), "BSD"), train=train)
        for layer, dropout in zip(self.layers, self.dropouts[1:], strict=True):
            x = x + dropout(layer(x, segments), train=train)
        return x


# ------------------------------------------------------------------------------ Attention


class Memory(NamedTuple):
    """What is attended to."""

    values: jax.Array  # [B S D]
    keys: jax.Array  # [B S F]
    seen: jax.Array  # bool [B 1 S]: where a hypothesis may look


class Weights(NamedTuple):
    """Those of additive attention."""

    query: jax.Array  # W [D F]
    energy: jax.Array  # v [F]


def attend(weights: Weights, hidden: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
    """Bahdanau et al. 2015: softmax of vᵀ tanh(W h + U m) over the memory m.

    hidden [B K D] -> contexts [B K D], the memory's mean under the weights, and these, float32 [B K S]. Who may see
    nothing (padding) gets the plain mean.
    """
    query = _product("BKD,DF->BKF", hidden, weights.query)
    scores = energies(constrain(query, "BKF"), memory.keys, weights.energy)
    attended = jax.nn.softmax(jnp.where(memory.seen, scores, jnp.finfo(jnp.float32).min))
    values = memory.values
    return product("BKS,BSD->BKD", values.dtype.name, attended.astype(values.dtype), values), attended


@jax.checkpoint
def energies(query: jax.Array, keys: jax.Array, energy: jax.Array) -> jax.Array:
    """Query [B K F], keys [B S F] -> float32 vᵀ tanh(query + key) [B K S]; its array [B K S F] is never kept."""
    return (jnp.tanh(query[:, :, None] + keys[:, None]) * energy).sum(-1)


class AdditiveAttention(nn.Module):
    """Its weights; and the keys, which are the same in every step."""

    config: RecurrentConfig

    def setup(self) -> None:
        d = self.config.d_model
        self.key = Linear("BSD,DF->BSF", dict(D=d, F=d), self.config.dtype)
        self.query = self.param("query", named(nn.initializers.glorot_uniform(), "DF"), (d, d))
        self.energy = self.param("energy", named(nn.initializers.normal(d**-0.5), "F"), (d,))

    def weights(self) -> Weights:
        """What a step of the scan needs of it."""
        return Weights(self.query, self.energy)

    def shown(self, attended: jax.Array) -> None:
        """The weights [T B S] leave through Flax's collection "intermediates" as [N B H T S], of one layer and head."""
        self.sow("intermediates", "weights", attended.swapaxes(0, 1)[None, :, None])


# ------------------------------------------------------------------------------ Decoder


class Decoder(nn.Module):
    """N layers, of which the first attends to the encoder's output for all."""

    config: RecurrentConfig

    def setup(self) -> None:
        c = self.config
        self.cross_attention = AdditiveAttention(c)
        self.first = LSTM(c, c.d_model, contexts=True)
        self.layers = [LSTM(c, c.d_model, contexts=True) for _ in range(c.num_layers - 1)]
        self.dropouts = [Dropout(c.p_drop) for _ in range(c.num_layers)]

    def __call__(
        self, y: jax.Array, segments: jax.Array, memory: jax.Array, memory_segments: jax.Array, *, train: bool
    ) -> jax.Array:
        """Y [B T D], memory [B S D] and the segments of both -> [B T D]."""
        y, contexts = self._first(y, segments, memory, memory_segments)
        y = self.dropouts[0](y, train=train)
        for layer, dropout in zip(self.layers, self.dropouts[1:], strict=True):
            y = y + dropout(layer(y, segments, contexts), train=train)
        return y

    def _first(
        self, y: jax.Array, segments: jax.Array, memory: jax.Array, memory_segments: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The first layer's output and the contexts, both [B T D]."""
        keys, weights = self.cross_attention.key(memory), self.cross_attention.weights()
        seen = jnp.moveaxis(Mask(segments, memory_segments).dense(), 2, 0)  # [T B 1 S]

        def step(state: State, now: tuple[jax.Array, ...]) -> tuple[State, tuple[jax.Array, ...]]:
            gates, keep, seen = now
            state = reset(state, keep)
            context, attended = attend(weights, state.hidden, Memory(memory, keys, seen))
            gates = gates[:, None] + _product("BKD,DGF->BKGF", context, self.first.context)
            state = advance(gates, self.first.recurrent, state)
            return state, (state.hidden[:, 0], context[:, 0], attended[:, 0])

        begin = zeros(len(y), self.config.d_model, self.config.dtype)
        inputs = self.first.gates(y), kept(segments), seen
        _, (hidden, contexts, attended) = jax.lax.scan(step, begin, inputs, unroll=self.config.unroll)
        self.cross_attention.shown(attended)
        return constrain(hidden.swapaxes(0, 1), "BTD"), constrain(contexts.swapaxes(0, 1), "BTD")

    def step(self, y: jax.Array, states: list[State], memory: Memory) -> tuple[jax.Array, list[State]]:
        """One token of every hypothesis: y [B K D] and the state of each layer -> the same."""
        context, _ = attend(self.cross_attention.weights(), states[0].hidden, memory)
        after = [self.first.step(y, states[0], context)]
        y = after[0].hidden
        for layer, state in zip(self.layers, states[1:], strict=True):
            after.append(layer.step(y, state, context))
            y = y + after[-1].hidden
        return y, after
