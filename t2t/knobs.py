"""How a knob is declared: a typed dataclass field, a range where not every value makes sense, and a comment.

    d_ff: Count = 2048  # d_ff: inner width of the feed-forward layer

The comment is the help text. `check` holds a value against the declaration, `read` makes one from text.
"""

import dataclasses
import functools
import inspect
import io
import math
import tokenize
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from t2t.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Range:
    """Values from `low` to `high`; the ends belong to it unless `above` or `below` says otherwise."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is not allowed
    below: bool = False  # high itself is not allowed

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}" if self.low > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {self.high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high)))


Count = Annotated[int, Range(low=1)]
Whole = Annotated[int, Range(low=0)]
Probability = Annotated[float, Range(low=0, high=1, below=True)]
Positive = Annotated[float, Range(low=0, above=True)]
NonNegative = Annotated[float, Range(low=0)]

_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    float | None: "a number or None",
    bool: "true or false",
    str: "text",
}


@functools.cache
def hints(owner: type) -> dict[str, Any]:
    """The declared type of every field of a dataclass, ranges included."""
    return typing.get_type_hints(owner, include_extras=True)


@functools.cache
def comments(owner: type) -> dict[str, str]:
    """The comment beside each field of the dataclass `owner`, by field name; where it inherits one, its parent's."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        found |= _beside(each) if dataclasses.is_dataclass(each) else {}
    return {f.name: found.get(f.name, "") for f in dataclasses.fields(owner)}


def _beside(owner: type) -> dict[str, str]:
    """The comments in the source of a class, by the name that their line begins with."""
    found: dict[str, str] = {}
    first: dict[int, str] = {}  # line -> the name it begins with
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(owner)).readline):
        line = token.start[0]
        if token.type == tokenize.NAME:
            first.setdefault(line, token.string)
        elif token.type == tokenize.COMMENT and line in first:
            found.setdefault(first[line], token.string.lstrip("# "))
    return found


def _parts(declared: Any) -> tuple[Any, Range | None]:
    if typing.get_origin(declared) is Annotated:
        base, *notes = typing.get_args(declared)
        return base, next((n for n in notes if isinstance(n, Range)), None)
    return declared, None


def describe(declared: Any) -> str:
    """What a declaration allows, in words: "a whole number, at least 1"."""
    base, limits = _parts(declared)
    if typing.get_origin(base) is Literal:
        return " | ".join(map(str, typing.get_args(base)))
    return _NAMES.get(base, getattr(base, "__name__", str(base))) + (f", {limits}" if limits else "")


def read(text: str, declared: Any, path: str) -> Any:
    """The value that `text` spells for a field declared as `declared`.

    Raises:
        UserError: the text spells no such value.
    """
    base, _ = _parts(declared)
    spelled: dict[Any, Any] = {
        int: _read_int,
        float: float,
        float | None: lambda text: None if text == "None" else float(text),
        bool: lambda text: {"true": True, "false": False}[text.lower()],  # as JSON, and as Python prints it
    }
    try:
        return check(spelled.get(base, str)(text), declared, path)
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"--{path} is {describe(declared)}, not {text!r}") from None


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        if not (value := float(text)).is_integer():  # so that 1e5 is a whole number too
            raise
        return int(value)


def check(value: Any, declared: Any, path: str) -> Any:
    """`value` itself, when the declaration allows it (a whole number does for a float).

    Raises:
        UserError: wrong type or out of range.
    """
    base, limits = _parts(declared)
    if typing.get_origin(base) is Literal:
        if value not in typing.get_args(base):
            raise unknown(f"--{path}", str(value), map(str, typing.get_args(base)))
        return value
    if base in (float, float | None) and type(value) is int:
        value = float(value)
    if isinstance(base, (type, types.UnionType)) and not _is_a(value, base):
        raise UserError(f"--{path} is {describe(declared)}, not {value!r}")
    if (limits and value not in limits) or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"--{path} is {describe(declared)}, not {value!r}")
    return value


def check_all(owner: type, values: Mapping[str, Any], path: str = "") -> None:
    """`check` of those values, by name, that are of fields of the dataclass `owner`; `path` comes before the names."""
    for name in values.keys() & hints(owner).keys():
        check(values[name], hints(owner)[name], f"{path}{name}")


def _is_a(value: Any, base: Any) -> bool:
    if base in (int, float, bool, str):
        return type(value) is base
    return isinstance(value, base) and (not getattr(base, "_is_protocol", False) or dataclasses.is_dataclass(value))
