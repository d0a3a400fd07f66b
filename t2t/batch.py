"""What a batch is: plain arrays under names, so that data needs no JAX and the model no data code.

Letters: `B` rows of a batch, `S` source length, `T` target length.
"""

from typing import Any, NamedTuple

PAD = 0  # fills rows; as decoder input it is the zero vector that every sentence starts from
EOS = 1  # ends every source and every target
UNK = 2  # a piece outside the vocabulary


class Sequences(NamedTuple):
    """Rows of tokens, each field an int32 array [B T].

    A row may hold several sentences one after the other. `segments` numbers them from 1 and is 0 on padding;
    `positions` counts from 0 within each sentence.
    """

    tokens: Any
    segments: Any
    positions: Any


class Batch(NamedTuple):
    """Sentence pairs: segment n of a source row belongs to segment n of the same target row."""

    source: Sequences  # [B S], [B 0] of texts without sources
    target: Sequences  # [B T]
