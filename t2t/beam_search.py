"""Section 6.1's beam search: of one batch, or of any number of sentences in the rows of one.

Works on any model with `encode`, `start`, `step` and `cache_axes`; K is the number of beams. A search is a few compiled
programs: one goes token after token until there is something to decide (`_advance`), the others give rows to other
sentences, keep those alone that are left, or move together what is still looked at.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import EOS, PAD, Sequences
from t2t.sharding import gather, row_shares

NOBODY = -1  # the number of no sentence
NEVER = -1e30  # a log-probability that nothing real reaches; finite, so that differences stay numbers

FEW = 2  # a search whose rows are done but for one in so many goes on with those alone
LEAST = 16  # rows of the smallest array that it goes on with: each size is compiled
TAKEN = 4  # of the rows of a search one in so many is given at a time to sentences that wait, once theirs are done
BLOCK = 32  # entries of the vocabulary that are looked at together for the largest
FIRST = 16  # tokens a hypothesis that the cache has room for at first: 2, 4, 8 ... times as many when they do not fit
COARSE = 64  # the same where sizes do not pay
FULL = 0.75  # the part of its places that a cache may begin with in use: how seldom it is moved against its size

Params = Any
Place = Callable[[list[int], int], tuple[Sequences, jax.Array]]  # numbers, rows -> sources and limits


def sizes_pay() -> bool:
    """Whether arrays of a smaller size are worth a program of their own.

    On a CPU a step takes as long as its arrays are large. On a GPU or TPU it hardly does while they are small, and each
    program is a good while compiling.
    """
    return jax.default_backend() == "cpu"


def first_room() -> int:
    """Tokens that a hypothesis has room for at first, and a source at least."""
    return FIRST if sizes_pay() else COARSE


class Automaton(Protocol):
    """Beside a search: what each hypothesis may go on with. A pytree of arrays; so is its state."""

    def start(self, beams: int) -> Any:
        """The state before the first token: arrays [B K ...]."""
        ...

    def constrain(self, log_probs: jax.Array, at: Any, left: jax.Array) -> jax.Array:
        """The log-probabilities [B K V] of next tokens, NEVER for those that may not stand there.

        left [B]: positions that are left, EOS counted. Where there is one, each hypothesis may go on with some token.
        """
        ...

    def advance(self, at: Any, token: jax.Array) -> Any:
        """The state after `token` [B K]."""
        ...

    def rows(self, index: jax.Array) -> "Automaton":
        """The automaton of these rows of the batch alone."""
        ...


class Found(NamedTuple):
    """The hypotheses of a batch, best first; one that does not exist scores NEVER."""

    tokens: jax.Array  # int32 [B K T], EOS included, then PAD
    scores: jax.Array  # [B K]


def length_penalty(length: jax.Array | int, alpha: jax.Array | float) -> jax.Array:
    """((5 + |Y|) / 6)^α of Wu et al. 2016; the length counts EOS."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


class Ending(NamedTuple):
    """When a sentence is done."""

    wanted: int  # outputs that are asked for
    early: bool  # as soon as K hypotheses have ended

    @classmethod
    def of(cls, beams: int, wanted: int | None, early_stopping: bool) -> "Ending":
        """Of a search with `beams` hypotheses; wanted None: all of them."""
        return cls(min(wanted or beams, beams), early_stopping)


class Beams(NamedTuple):
    """What beam search carries from token to token."""

    length: jax.Array  # [B] tokens generated so far
    living: jax.Array  # int32 [B K T]: hypotheses that go on
    log_probs: jax.Array  # [B K] of the living
    finished: jax.Array  # int32 [B K T]: the best that ended
    scores: jax.Array  # [B K] of the finished, NEVER where there is none yet
    done: jax.Array  # bool [B]: no living hypothesis can still matter
    cache: Any
    at: Any  # the state of the automaton, if there is one


def beam_search(
    model: Any,
    params: Params,
    source: Sequences,
    limits: jax.Array,
    beams: int,
    alpha: jax.Array | float,
    max_length: int,
    automaton: Automaton | None = None,
    wanted: int | None = None,
    early_stopping: bool = False,
) -> Found:
    """The `wanted` best outputs (None: `beams`, the most there are) for each row of source [B S].

    limits [B]: the most tokens an output may have, EOS counted, at most `max_length`; 0 for a row that is empty.
    Of 2 K candidates a step, those that end compete for the K finished places and the others for the K living ones. A
    sentence is done when the last wanted of its finished scores is beyond what its best living hypothesis can reach at
    full length; with `early_stopping` already when as many as there are beams have ended. If nothing has ended at the
    limit, the living are returned as they stand.

    With an `automaton` no hypothesis goes on with a token that it forbids.

    Departure: the authors' first code lets any of the 2 K candidates end. Here, as in most later code, one must be
    among the best K, so that a single beam is exactly greedy decoding.
    """
    limits = jnp.asarray(limits, jnp.int32)
    ending = Ending.of(beams, wanted, early_stopping)
    state = _begin(model, params, source, limits, beams, min(first_room(), max_length), max_length, automaton)
    state, _ = _search(model, params, state, limits, jnp.float32(alpha), automaton, ending)
    return _found(state, limits, alpha, ending.wanted)


def search_all(
    model: Any,
    params: Params,
    numbers: list[int],
    rows: int,
    place: Place,
    beams: int,
    alpha: float,
    max_length: int,
    wanted: int | None = None,
    early_stopping: bool = False,
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """`beam_search` of any number of sentences in `rows` rows: (number, tokens [K T], scores [K]) each, in any order.

    `place` makes the sources and limits of sentences by their numbers, as `beam_search` takes them.
    """
    ending = Ending.of(beams, wanted, early_stopping)
    waiting = _Waiting(numbers, rows, place)
    source, limits = place(numbers[:rows], rows)
    state = _begin(model, params, source, limits, beams, min(first_room(), max_length), max_length, None)
    limits = jax.device_put(limits, state.done.sharding)  # as later ones come: elsewhere they are another program's
    state, limits = _search(model, params, state, limits, jnp.float32(alpha), None, ending, waiting)
    return waiting.all(_found(state, limits, alpha, ending.wanted))


@functools.partial(jax.jit, static_argnames=("model", "beams", "room", "max_length"))
def _begin(
    model: Any,
    params: Params,
    source: Sequences,
    limits: jax.Array,
    beams: int,
    room: int,
    max_length: int,
    automaton: Automaton | None,
) -> Beams:
    """Before the first token, with a cache for `room` of them. Types are said: weak ones compile what follows anew."""
    memory = model.apply(params, source, method="encode")
    cache = model.apply(params, source, memory, beams, room, method="start")
    b = limits.shape[0]
    empty = jnp.full((b, beams, max_length), PAD, jnp.int32)
    # All beams begin alike: only the first may have offspring in the first step.
    first = jnp.where(jnp.arange(beams) == 0, jnp.float32(0), NEVER)
    never = jnp.full((b, beams), NEVER, jnp.float32)
    at = automaton and automaton.start(beams)
    return Beams(jnp.zeros(b, jnp.int32), empty, jnp.tile(first, (b, 1)), empty, never, limits == 0, cache, at)


@functools.partial(jax.jit, static_argnames="wanted")
def _found(state: Beams, limits: jax.Array, alpha: jax.Array, wanted: int) -> Found:
    unfinished = (state.scores == NEVER).all(1)[:, None]
    living_scores = state.log_probs / length_penalty(limits, alpha)[:, None]
    tokens = jnp.where(unfinished[..., None], state.living, state.finished)
    return Found(tokens[:, :wanted], jnp.where(unfinished, living_scores, state.scores)[:, :wanted])


def _search(
    model: Any,
    params: Params,
    state: Beams,
    limits: jax.Array,
    alpha: jax.Array,
    automaton: Automaton | None,
    ending: Ending,
    waiting: "_Waiting | None" = None,
) -> tuple[Beams, jax.Array]:
    """Token after token until all rows are done, and none is left of those `waiting` for rows.

    When few are left, the search goes on with an array of these alone. Returns the state, without cache and `at`, and
    the limits of its rows.
    """
    advance = _advancing(jax.default_backend())
    few = len(limits) // FEW if len(limits) >= FEW * LEAST and row_shares() == 1 and sizes_pay() else 0
    while True:
        stop = len(limits) - waiting.rows if waiting else few
        state, left, used = advance(model, params, state, limits, alpha, automaton, np.int32(stop), ending)
        if int(left) > stop:
            places = _places(int(used), *state.living.shape[1:])
            state = state._replace(cache=_moved_together(model, state.cache, places))
        elif waiting:
            state, limits = waiting.enter(model, params, state, limits, alpha, ending.wanted)
        else:
            break
    answers = state._replace(cache=None, at=None)
    if int(left) == 0:
        return answers, limits
    rows, *rest = _rows_left(model, state, limits, automaton, few)
    part, _ = _search(model, params, rest[0], rest[1], alpha, rest[2], ending)
    return _put(answers, rows, part), limits


def _advance(
    model: Any,
    params: Params,
    state: Beams,
    limits: jax.Array,
    alpha: jax.Array,
    automaton: Automaton | None,
    few: jax.Array,
    ending: Ending,
) -> tuple[Beams, jax.Array, jax.Array]:
    """Token after token until at most `few` rows are left or the cache is full.

    Returns the state, how many rows are left, and how many places of the cache the row with most of them still uses.
    """
    limited, k = "seen" in model.cache_axes, state.living.shape[1]

    def advance(state: Beams) -> Beams:
        before = _take(jnp.swapaxes(state.living, 1, 2), jnp.maximum(state.length - 1, 0)[:, None], 1)[:, 0]
        last = jnp.where(state.length[:, None] == 0, PAD, before)
        logits, cache = model.apply(params, state.cache, last, method="step")
        return _next_beams(model, state._replace(cache=cache), logits, limits, alpha, automaton, ending)

    def goes_on(state: Beams) -> jax.Array:
        fits = state.cache["index"] + k <= state.cache["seen"].shape[2] if limited else True
        return ((~state.done).sum() > few) & fits

    state = jax.lax.while_loop(goes_on, advance, state)
    used = jnp.zeros((), jnp.int32)
    if limited:  # nobody looks any more at what a row that is done has seen
        seen = state.cache["seen"] & ~state.done[:, None, None]
        state = state._replace(cache=state.cache | {"seen": seen})
        used = _used(state.cache).sum(-1).max()
    return state, (~state.done).sum(), used


@functools.cache
def _advancing(platform: str) -> Callable[..., tuple[Beams, jax.Array, jax.Array]]:
    """`_advance`, compiled. On a CPU XLA copies the whole cache for every token unless it is told to look closely."""
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if platform == "cpu" else None
    return jax.jit(_advance, static_argnames=("model", "ending"), donate_argnames="state", compiler_options=options)


@functools.partial(jax.jit, static_argnames=("model", "few"))
def _rows_left(
    model: Any, state: Beams, limits: jax.Array, automaton: Automaton | None, few: int
) -> tuple[jax.Array, Beams, jax.Array, Automaton | None]:
    """The rows that are not done, and some that are, which stay so: (their indices, and all that is theirs)."""
    rows = jnp.argsort(state.done)[:few]
    fewer = Beams(
        *(x[rows] for x in state[:6]),
        cache=_each(lambda x, axes: x.take(rows, axes.index("B")) if "B" in axes else x, model, state.cache),
        at=jax.tree.map(lambda x: x[rows], state.at),
    )
    return rows, fewer, limits[rows], automaton and automaton.rows(rows)


@jax.jit
def _put(answers: Beams, rows: jax.Array, part: Beams) -> Beams:
    names = Beams._fields[1:6]
    return answers._replace(**{name: getattr(answers, name).at[rows].set(getattr(part, name)) for name in names})


class _Waiting:
    """Sentences of a search that have no row yet; rows whose sentences are done are given to them. False when all have.

    Also says whose the rows are, and keeps what was found in those that were given away.
    """

    def __init__(self, numbers: list[int], rows: int, place: Place) -> None:
        """Of these numbers the first `rows` have a row; `place` makes the arrays of others."""
        self.rows = max(1, rows // TAKEN)  # how many at a time
        self._owners = np.full(rows, NOBODY)
        self._owners[: len(numbers)] = numbers[:rows]
        self._numbers = numbers[rows:]
        self._place = place
        self._found: list[tuple[int, np.ndarray, np.ndarray]] = []

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def enter(
        self, model: Any, params: Params, state: Beams, limits: jax.Array, alpha: jax.Array, wanted: int
    ) -> tuple[Beams, jax.Array]:
        """The next ones take rows of a state in which so many are done: (the state, and the limits of its rows)."""
        numbers, self._numbers = self._numbers[: self.rows], self._numbers[self.rows :]
        new = self._place(numbers, self.rows)
        state, limits, rows, found = _entered(model, params, state, limits, *new, alpha, wanted)
        rows = gather(rows)
        self._keep(self._owners[rows], found)
        self._owners[rows] = numbers + [NOBODY] * (self.rows - len(numbers))
        return state, limits

    def all(self, last: Found) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(number, tokens, scores) of each sentence, with what was found in the rows at last."""
        self._keep(self._owners, last)
        return self._found

    def _keep(self, owners: np.ndarray, found: Found) -> None:
        whose = zip(owners.tolist(), *gather(found), strict=True)
        self._found += [each for each in whose if each[0] != NOBODY]


@functools.partial(jax.jit, static_argnames=("model", "wanted"), donate_argnames="state")
def _entered(
    model: Any,
    params: Params,
    state: Beams,
    limits: jax.Array,
    source: Sequences,
    new_limits: jax.Array,
    alpha: jax.Array,
    wanted: int,
) -> tuple[Beams, jax.Array, jax.Array, Found]:
    """The state and limits with other sentences in rows that are done; these rows, and what had been found in them."""
    rows = jnp.argsort(~state.done)[: len(new_limits)]
    found = _found(Beams(*(x[rows] for x in state[:6]), cache=None, at=None), limits[rows], alpha, wanted)
    _, beams, max_length = state.living.shape
    new = _begin(model, params, source, new_limits, beams, 1, max_length, None)
    put = lambda x, of_rows: x.at[rows].set(of_rows)  # noqa: E731

    def put_in_cache(name: str) -> Any:
        axes, part = model.cache_axes[name], state.cache[name]
        if name == "seen":
            return put(part, False)
        # What lies in the places of tokens may stay there: nobody sees it.
        return part if "B" not in axes or "T" in axes else jax.tree.map(put, part, new.cache[name])

    cache = {name: put_in_cache(name) for name in state.cache}
    state = Beams(*(put(x, y) for x, y in zip(state[:6], new[:6], strict=True)), cache=cache, at=None)
    return state, put(limits, new_limits), rows, found


def _each(change: Callable[[jax.Array, str], jax.Array], model: Any, cache: Any) -> Any:
    """The cache with change(array, its letters) in the place of each array."""
    return {name: jax.tree.map(lambda x: change(x, model.cache_axes[name]), part) for name, part in cache.items()}  # noqa: B023


def _used(cache: Any) -> jax.Array:
    """The places of a cache that some hypothesis sees: bool [B T]."""
    return cache["seen"].any(1)


def _places(used: int, beams: int, max_length: int) -> int:
    """Places for a cache in which so many are used: one of few numbers, and never more than outputs can fill."""
    tokens = first_room()
    while used > FULL * beams * tokens:
        tokens *= 2
    return beams * min(tokens, max_length)


@functools.partial(jax.jit, static_argnames=("model", "places"))
def _moved_together(model: Any, cache: Any, places: int) -> Any:
    """The cache with so many places, the used ones first: those that no hypothesis sees any more are written anew."""
    used = _used(cache)
    order = jnp.argsort(~used, axis=1)[:, :places]  # a stable order: the past stays in its order

    def move(x: jax.Array, axes: str) -> jax.Array:
        if "T" not in axes:
            return x
        where = order.reshape([order.shape["BT".index(a)] if a in "BT" else 1 for a in axes])
        x = jnp.take_along_axis(x, where, axis=axes.index("T"))
        return jnp.pad(x, [(0, places - n if a == "T" else 0) for a, n in zip(axes, x.shape, strict=True)])

    return _each(move, model, cache) | {"index": used.sum(-1, dtype=jnp.int32).max()}


def _next_beams(
    model: Any,
    state: Beams,
    logits: jax.Array,
    limits: jax.Array,
    alpha: jax.Array,
    automaton: Automaton | None,
    ending: Ending,
) -> Beams:
    """One token further: logits [B K V] for the next token of every living hypothesis."""
    k = logits.shape[1]
    top, beam, token = _candidates(logits, state, limits, automaton)
    tokens = _take(state.living, beam, 1)
    here = jnp.arange(tokens.shape[2]) == state.length[:, None]
    tokens = jnp.where(here[:, None], token[..., None], tokens)
    length = state.length + 1

    ends = (token == EOS) & (top > NEVER / 2) & (jnp.arange(2 * k) < k)
    ends &= (length <= limits)[:, None] & ~state.done[:, None]
    ended = jnp.where(ends, top / length_penalty(length, alpha)[:, None], NEVER)
    pool = jnp.concatenate([state.scores, ended], axis=1), jnp.concatenate([state.finished, tokens], axis=1)
    scores, kept = jax.lax.top_k(pool[0], k)
    finished = _take(pool[1], kept, 1)

    log_probs, kept = jax.lax.top_k(jnp.where(token == EOS, NEVER, top), k)
    living, parent = _take(tokens, kept, 1), _take(beam, kept, 1)
    reachable = log_probs[:, 0] / length_penalty(limits, alpha)
    # With a single beam nothing is left to choose between once it has ended.
    last = scores[:, ending.wanted - 1]
    beaten = (last > NEVER) & ((last > reachable) | (k == 1))
    beaten |= (scores > NEVER).all(1) & ending.early
    dead = log_probs[:, 0] < NEVER / 2  # an automaton may let nothing go on
    done = state.done | beaten | dead | (length >= limits)
    # A row that is done stays as it is: its living hypotheses may be its answer.
    living = jnp.where(state.done[:, None, None], state.living, living)
    log_probs = jnp.where(state.done[:, None], state.log_probs, log_probs)
    at = state.at
    if automaton:
        at = automaton.advance(jax.tree.map(lambda x: _take(x, parent, 1), at), _take(token, kept, 1))
    return Beams(length, living, log_probs, finished, scores, done, reorder(model, state.cache, parent), at)


def _candidates(
    logits: jax.Array, state: Beams, limits: jax.Array, automaton: Automaton | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2 K best ways to go on: log-probability, hypothesis and token, [B 2K] each.

    None is beyond the 2 K best of its own hypothesis. So without an automaton the vocabulary need not be normalised.
    """
    b, k, v = logits.shape
    if automaton:
        ranked, log_z = log_probs_of(logits, automaton, state.at, limits - state.length), jnp.zeros((b, k))
    else:
        ranked, log_z = logits, jax.nn.logsumexp(logits, axis=-1)
    ranked, tokens = _top_k(ranked, min(2 * k + 1, v))  # one more, for PAD
    ranked = jnp.where(tokens == PAD, NEVER, ranked)
    log_probs = ranked + (state.log_probs - log_z)[..., None]
    top, choice = jax.lax.top_k(log_probs.reshape(b, -1), 2 * k)
    return top, choice // ranked.shape[-1], _take(tokens.reshape(b, -1), choice, 1)


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of x [B K V] in two stages: the k largest are in the k blocks whose largest is largest.

    A block's entries lie far apart: then its maximum is that of whole rows, for which a CPU has instructions.
    """
    v = x.shape[-1]
    if v < 2 * k * BLOCK:
        return jax.lax.top_k(x, k)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -v % BLOCK)), constant_values=NEVER)
    blocks = padded.reshape(*x.shape[:2], BLOCK, -1)
    _, best = jax.lax.top_k(blocks.max(-2), k)
    chosen = jnp.take_along_axis(blocks, best[:, :, None], axis=3)  # [B K BLOCK k]
    largest, at = jax.lax.top_k(chosen.reshape(*x.shape[:2], -1), k)
    return largest, at // k * blocks.shape[-1] + jnp.take_along_axis(best, at % k, axis=2)


def log_probs_of(logits: jax.Array, automaton: Automaton | None, at: Any, left: jax.Array) -> jax.Array:
    """Of each next token, [B K V]; NEVER for PAD and for what the automaton forbids."""
    log_probs = jax.nn.log_softmax(logits).at[..., PAD].set(NEVER)
    return automaton.constrain(log_probs, at, left) if automaton else log_probs


def reorder(model: Any, cache: Any, parent: jax.Array) -> Any:
    """The cache after beam i of each sentence became a child of beam parent[b, i]; parent [B K]."""

    def take(x: jax.Array, axes: str) -> jax.Array:
        if "K" not in axes:
            return x
        shape = [parent.shape["BK".index(a)] if a in "BK" else 1 for a in axes]
        return jnp.take_along_axis(x, parent.reshape(shape), axis=axes.index("K"))

    return _each(take, model, cache)


def _take(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """x[b, index[b, i], ...] for index [B I]."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - index.ndim)), axis=axis)
