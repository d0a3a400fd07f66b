"""Several models of one vocabulary decoded as one, by the mean of their log-probabilities."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t2t.batch import Sequences
from t2t.models import Architecture

Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """An architecture for decoding alone: nothing trains it."""

    members: tuple[Architecture, ...]  # at least one; all of one vocabulary

    @property
    def vocab_size(self) -> int:
        """V, of each of them."""
        return self.members[0].vocab_size

    @property
    def target_vocab_size(self) -> int:
        """V of targets, of each of them; 0: shared."""
        return self.members[0].target_vocab_size

    @property
    def d_model(self) -> int:
        """The first one's."""
        return self.members[0].d_model

    @property
    def dtype(self) -> str:
        """Of their products: that of each member, or all that there are."""
        return ", ".join(dict.fromkeys(getattr(each, "dtype", "float32") for each in self.members))

    @property
    def longest(self) -> int | None:
        """Tokens that all of them take."""
        return min((each.longest for each in self.members if each.longest is not None), default=None)

    def build(self) -> Any:
        """What decodes them."""
        return Ensemble(tuple(each.build() for each in self.members))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """`encode`, `start` and `step` by `apply`, as of a Flax module; its weights are the tuple of its members'."""

    members: tuple[Any, ...]

    @property
    def cache_axes(self) -> Mapping[str, str]:
        """Those of each member, its number before their names; but all have one order of places for tokens."""
        return {_key(i, name): axes for i, each in enumerate(self.members) for name, axes in each.cache_axes.items()}

    def apply(self, params: tuple[Any, ...], *given: Any, method: str = "log_probs") -> Any:
        """One of the methods below."""
        return getattr(self, method)(params, *given)

    def log_probs(self, params: tuple[Any, ...], source: Sequences, target: Sequences) -> jax.Array:
        """Source [B S], target [B T] -> the mean log-probability of each target token, [B T V], not normalised."""
        return _mean([each.apply(p, source, target) for each, p in zip(self.members, params, strict=True)])

    def encode(self, params: tuple[Any, ...], source: Sequences) -> tuple[Any, ...]:
        """What each member encodes."""
        return tuple(each.apply(p, source, method="encode") for each, p in zip(self.members, params, strict=True))

    def start(
        self, params: tuple[Any, ...], source: Sequences, memory: tuple[Any, ...], beams: int, room: int
    ) -> Cache:
        """The caches of all members."""
        cache: Cache = {}
        for i, (each, p, its_memory) in enumerate(zip(self.members, params, memory, strict=True)):
            its_own = each.apply(p, source, its_memory, beams, room, method="start")
            cache |= {_key(i, name): part for name, part in its_own.items()}
        return cache

    def step(self, params: tuple[Any, ...], cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds the last tokens [B K] to all -> (mean log-probabilities [B K V], which are logits, and the cache)."""
        logits, after = [], {}
        for i, (each, p) in enumerate(zip(self.members, params, strict=True)):
            its_own = {name: cache[_key(i, name)] for name in each.cache_axes}
            its_logits, its_own = each.apply(p, its_own, tokens, method="step")
            logits.append(its_logits)
            after |= {_key(i, name): part for name, part in its_own.items()}
        return _mean(logits), after


def _key(member: int, name: str) -> str:
    return name if name in ("index", "seen") else f"{member}/{name}"


def _mean(logits: list[jax.Array]) -> jax.Array:
    """Normalised again, as decoding does, these are the probabilities' geometric mean."""
    return jnp.stack([jax.nn.log_softmax(each) for each in logits]).mean(0)
