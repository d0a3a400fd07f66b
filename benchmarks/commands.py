"""Knobs as a script is given them, and as it passes them on: --model.d_ff 1024 is {"model.d_ff": "1024"}."""

from collections.abc import Mapping, Sequence
from typing import Any


def knobs(words: Sequence[str]) -> dict[str, str]:
    """The knobs that words of a command name.

    Raises:
        ValueError: one of them has no value.
    """
    return {flag[2:]: value for flag, value in zip(words[::2], words[1::2], strict=True)}


def words(*changes: Mapping[str, Any]) -> list[str]:
    """Words of a command for knobs; of those given twice the last counts."""
    merged = {name: value for each in changes for name, value in each.items()}
    return [word for name, value in merged.items() for word in (f"--{name}", str(value))]
