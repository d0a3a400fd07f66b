"""Section 6.1: from a source to the best target. Beam search, greedy, sampling, and the score of a given target.

Everything works on any model with `encode`, `start`, `step` and `cache_axes`; K is the number of beams.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import EOS, PAD, Batch, Sequences
from t2t.beam_search import (
    LEAST,
    NEVER,
    Automaton,
    Found,
    beam_search,
    first_room,
    length_penalty,
    log_probs_of,
    search_all,
)
from t2t.data.batching import evaluation_length, fill
from t2t.knobs import Count, NonNegative, Range, Whole
from t2t.sharding import gather, on_mesh, row_shares, side_by_side

ALONE = 32  # so many sentences at most are searched for by one thread
THREADS = 2  # batches at a time on a CPU: one by itself leaves the second of two cores idle for almost half of its time

Params = Any


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Section 6.1's beam search; the defaults are the paper's for translation."""

    beam: Count = 4  # K: hypotheses kept a sentence; 1 is greedy decoding; paper: 4
    alpha: NonNegative = 0.6  # α: exponent of the length penalty; paper: 0.6
    extra_length: Whole = 50  # tokens: the output is at most this much longer than the input; paper: 50
    max_input: Annotated[int, Range(low=2)] = 512  # tokens with EOS: translate and parse split or cut a longer line
    early_stopping: bool = False  # done once K hypotheses ended; paper: not until no other can be better
    rows: Count = 128  # sentences decoded at a time


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Draws outputs instead of searching for the best."""

    temperature: Annotated[float, Range(low=1e-3)] = 1.0  # divides the logits; below 1 sharpens the distribution
    top_k: Whole = 0  # pieces: draw among this many most likely ones; 0: all
    nucleus: Annotated[float, Range(low=0, high=1, above=True)] = 1.0  # probability held by those drawn among
    seed: Annotated[int, Range(low=0, high=2**31)] = 0  # of the draws; a sentence's depend on it and its number alone


class Hypothesis(NamedTuple):
    """An output as token ids without EOS, and what it is ranked by."""

    tokens: list[int]
    score: float  # log-probability over the length penalty; of a drawn output, the plain log-probability


class Constraint(Protocol):
    """What gives each batch of sentences its automaton."""

    def batch(self, sentences: list[int], rows: int, length: int) -> Automaton:
        """For the sentences of these numbers, of less than `length` tokens each, and empty rows after them."""
        ...


# ------------------------------------------------------------------------------ Greedy and sampling


@functools.partial(jax.jit, static_argnames=("model", "max_length"))
def greedy(
    model: Any,
    params: Params,
    source: Sequences,
    limits: jax.Array,
    alpha: jax.Array,
    max_length: int,
    automaton: Automaton | None = None,
) -> Found:
    """The most likely next token, until EOS or the limit: `beam_search` with one beam, without the search."""

    def best(log_probs: jax.Array, index: jax.Array) -> jax.Array:
        return log_probs.argmax(-1)

    found = _one_by_one(model, params, source, limits, max_length, best, automaton)
    length = (found.tokens != PAD).sum(-1)
    return Found(found.tokens, found.scores / length_penalty(length, alpha))


@functools.partial(jax.jit, static_argnames=("model", "max_length", "top_k"))
def sample(
    model: Any,
    params: Params,
    source: Sequences,
    limits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    nucleus: jax.Array,
    max_length: int,
    top_k: int,
) -> Found:
    """Draws an output a row; keys [B] make row b's draws its own, whatever the batch. The score is log p(output)."""

    def draw(logits: jax.Array, index: jax.Array) -> jax.Array:
        allowed = restrict(logits / temperature, top_k, nucleus)
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return jax.vmap(jax.random.categorical)(now, allowed)

    return _one_by_one(model, params, source, limits, max_length, draw)


def restrict(logits: jax.Array, top_k: int, nucleus: jax.Array) -> jax.Array:
    """Logits [B V] with NEVER outside the `top_k` likeliest (0: all) and outside the nucleus.

    The nucleus (Holtzman et al. 2020) is the smallest set of likeliest tokens whose probability reaches `nucleus`.
    """
    if top_k:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    ordered = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(ordered)
    inside = jnp.cumsum(probs, axis=-1) - probs < nucleus  # probability before this token is still short of it
    least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, NEVER, logits)


def _one_by_one(
    model: Any,
    params: Params,
    source: Sequences,
    limits: jax.Array,
    max_length: int,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    automaton: Automaton | None = None,
) -> Found:
    """One hypothesis a row, each token by `choose(log_probs [B V], index) -> [B]`."""
    memory = model.apply(params, source, method="encode")
    cache = model.apply(params, source, memory, 1, max_length, method="start")
    b = limits.shape[0]
    empty, at = jnp.full((b, max_length), PAD, jnp.int32), automaton and automaton.start(1)
    start = (jnp.zeros((), jnp.int32), empty, jnp.zeros(b), limits == 0, cache, at)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        index, tokens, total, done, cache, at = state
        last = jnp.where(index == 0, PAD, tokens[:, index - 1])[:, None]
        logits, cache = model.apply(params, cache, last, method="step")
        log_probs = log_probs_of(logits, automaton, at, limits - index)[:, 0]
        token = jnp.where(done, PAD, choose(log_probs, index)).astype(jnp.int32)
        gained = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], index, axis=1)
        total = total + jnp.where(done, 0.0, gained)
        at = automaton and automaton.advance(at, token[:, None])
        return index + 1, tokens, total, done | (token == EOS) | (index + 1 >= limits), cache, at

    _, tokens, total, *_ = jax.lax.while_loop(lambda s: ~s[3].all(), advance, start)
    return Found(tokens[:, None], total[:, None])


# ------------------------------------------------------------------------------ The score of a given target


@functools.partial(jax.jit, static_argnames="model")
def forced_scores(model: Any, params: Params, batch: Batch) -> jax.Array:
    """Log p(target | source) of each row of a batch of one sentence a row, in nats: [B]."""
    log_probs = jax.nn.log_softmax(model.apply(params, batch.source, batch.target))
    chosen = jnp.take_along_axis(log_probs, batch.target.tokens[..., None], axis=-1)[..., 0]
    return jnp.where(batch.target.segments != 0, chosen, 0.0).sum(-1)


# ------------------------------------------------------------------------------ Many sentences


def decode(
    model: Any,
    params: Params,
    sources: list[list[int]],
    config: DecodingConfig,
    sampling: SamplingConfig | None = None,
    numbers: list[tuple[int, int]] | None = None,
    longest: int | None = None,
    constraint: Constraint | None = None,
    wanted: int | None = None,
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """Decodes token lists (EOS at the end of each) in batches by length: (index, hypotheses, best first), as each ends.

    At most `wanted` hypotheses a sentence (None: as many as beams): a search for fewer ends sooner.

    Greedy when `config.beam` is 1, one draw a sentence when `sampling` is given; `numbers`, a pair a sentence, make its
    draws its own. `longest` is the most tokens that the model takes; a `constraint` says what searched outputs may be,
    and does not go with drawn ones. Batches have few shapes, so indices do not come in order.
    """
    draws = np.array(numbers or [(i, 0) for i in range(len(sources))], np.int32).reshape(-1, 2)

    searched = config.beam > 1 and not sampling and not constraint and row_shares() == 1

    def work(part: "_Part") -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        if searched:
            return _search_part(model, params, sources, part, config, longest, wanted)
        automaton = constraint.batch(part.sentences, part.rows, part.length) if constraint else None
        batch = _Batch([sources[i] for i in part.sentences], draws[part.sentences], part.rows, part.length, automaton)
        found = gather(_decode_batch(model, params, batch, config, sampling, longest, wanted))
        return zip(part.sentences, *found, strict=False)

    for found in side_by_side(work, list(_parts(sources, config.rows, searched)), _threads()):
        for i, tokens, scores in found:
            yield i, _hypotheses(tokens, scores)


def _threads() -> int:
    """Programs of several devices are not run side by side: each would wait for the other at its collectives."""
    return THREADS if jax.default_backend() == "cpu" and jax.device_count() == 1 else 1


class _Part(NamedTuple):
    """Sentences that are decoded together, or one after the other in the same rows."""

    sentences: list[int]  # their indices
    rows: int
    length: int


def _parts(sources: list[list[int]], most: int, searched: bool) -> Iterator[_Part]:
    """In as many rows as there are sentences, at most `most`; searched ones may be more, and wait for a row.

    The longest come first: what a search goes on with when no sentence waits any more is then soon done.
    """
    lengths = np.array([evaluation_length(max(len(s), first_room())) for s in sources])
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        chosen = chosen[np.argsort([-len(sources[i]) for i in chosen], kind="stable")]
        if searched:
            streams = _threads() if len(chosen) > ALONE else 1
            for part in (chosen[i::streams].tolist() for i in range(streams)):
                yield _Part(part, _rows(len(part), most, waiting=True), int(length))
        else:
            rows = _rows(len(chosen), most)
            rows += -rows % row_shares()
            for begin in range(0, len(chosen), rows):
                yield _Part(chosen[begin : begin + rows].tolist(), rows, int(length))


class _Batch(NamedTuple):
    sources: list[list[int]]  # at most `rows`
    numbers: np.ndarray  # [sentences 2], what makes their draws their own
    rows: int
    length: int
    automaton: Automaton | None


def _rows(sentences: int, most: int, waiting: bool = False) -> int:
    """Rows of a batch: the next power of two, so that a few lines need not wait for `most` rows of work.

    Where sentences may wait for a row it is half as many, if they would leave more than a quarter of the rows empty.
    """
    rows = 1 << (sentences - 1).bit_length()
    return min(most, rows // 2 if waiting and rows > LEAST and 4 * sentences < 3 * rows else rows)


def _decode_batch(
    model: Any,
    params: Params,
    batch: _Batch,
    config: DecodingConfig,
    sampling: SamplingConfig | None,
    longest: int | None,
    wanted: int | None,
) -> Found:
    source, limits = _placed(batch.sources, batch.rows, batch.length, config, longest)
    max_length = batch.length + config.extra_length
    if sampling:
        numbers = np.zeros((batch.rows, 2), np.int32)
        numbers[: len(batch.numbers)] = batch.numbers
        keys = jax.vmap(_key, (None, 0))(jax.random.key(sampling.seed), numbers)
        how = (sampling.temperature, sampling.nucleus, max_length, sampling.top_k)
        return sample(model, params, source, limits, keys, *how)
    if config.beam == 1:
        return greedy(model, params, source, limits, config.alpha, max_length, batch.automaton)
    how = (config.beam, config.alpha, max_length, batch.automaton, wanted, config.early_stopping)
    return beam_search(model, params, source, limits, *how)


def _placed(
    sources: list[list[int]], rows: int, length: int, config: DecodingConfig, longest: int | None
) -> tuple[Sequences, jax.Array]:
    """Sentences in so many rows of so many tokens, and the limits of their outputs; 0 for a row without one."""
    limits = np.zeros(rows, np.int32)
    limits[: len(sources)] = [len(s) + config.extra_length for s in sources]
    return on_mesh(fill(sources, rows, length)), on_mesh(np.minimum(limits, longest or limits))


def _search_part(
    model: Any,
    params: Params,
    sources: list[list[int]],
    part: _Part,
    config: DecodingConfig,
    longest: int | None,
    wanted: int | None,
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(index, tokens, scores) of each sentence of a part, in any order."""

    def place(numbers: list[int], rows: int) -> tuple[Sequences, jax.Array]:
        return _placed([sources[i] for i in numbers], rows, part.length, config, longest)

    how = (config.beam, config.alpha, part.length + config.extra_length, wanted, config.early_stopping)
    return search_all(model, params, part.sentences, part.rows, place, *how)


def _key(key: jax.Array, numbers: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, numbers[0]), numbers[1])


def _hypotheses(tokens: np.ndarray, scores: np.ndarray) -> list[Hypothesis]:
    found = []
    for row, score in zip(tokens, scores, strict=True):
        if score > NEVER / 2:
            ids = row[row != PAD].tolist()
            found.append(Hypothesis(ids[:-1] if ids and ids[-1] == EOS else ids, float(score)))
    return found
