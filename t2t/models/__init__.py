"""Architectures: one file each, a frozen config and the Flax module that it builds."""

from typing import Protocol, runtime_checkable

import flax.linen as nn


@runtime_checkable
class Architecture(Protocol):
    """A frozen dataclass of an architecture's knobs.

    The module that it builds is called with source [B S], target [B T] (`t2t.batch.Sequences`) and `train`, and gives
    logits [B T V]; training calls its two halves, `hidden` (the same arguments to [B T D]) and `logits`, so that logits
    need not be there all at once. For decoding it has `encode`, `start` and `step` and names the axes of its cache by
    `cache_axes`, as `t2t.models.transformer.Transformer` does: what has `B` may be cut down to some rows, what has `K`
    is reordered when hypotheses change places. A cache that has places `T` for tokens has a number "index", the first
    free one, and bool "seen" [B K T], the places that are a hypothesis's past: others are written anew or taken out.
    """

    @property
    def vocab_size(self) -> int:
        """V: word pieces of the sources, and of the targets if they share them."""
        ...

    @property
    def target_vocab_size(self) -> int:
        """V of targets that have a vocabulary of their own, such as trees; 0: shared with the sources."""
        ...

    @property
    def d_model(self) -> int:
        """The width that the learning rate is scaled by (equation 3)."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens that a source or a target may have, EOS counted; None: any number."""
        ...

    def build(self) -> nn.Module:
        """The module."""
        ...
