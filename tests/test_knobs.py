"""How knobs are declared, read from text and held against their declaration."""

import dataclasses
import math
from typing import Annotated, Literal, Protocol, runtime_checkable

import pytest

from t2t import knobs
from t2t.errors import UserError
from t2t.knobs import Count, NonNegative, Positive, Probability, Range, Whole


@dataclasses.dataclass(frozen=True)
class Lamp:
    """A lamp: no knob of it is described here."""

    # A comment of its own line belongs to no knob.
    watts: Count = 60  # P: power, in watts
    colour: Literal["warm", "cold"] = "warm"  # of the light # not of the shade
    shade: Annotated[float, Range(low=0, high=1)] = 0.5
    name: str = "# not this"  # what it is called

    def bright(self):
        name = self.name  # a local of the same name
        return name and self.watts > 60


@runtime_checkable
class Socket(Protocol):
    def plug(self): ...


# ------------------------------------------------------------------------------ Declarations


def test_comments():
    assert knobs.comments(Lamp)["watts"] == "P: power, in watts"
    assert knobs.comments(Lamp)["colour"] == "of the light # not of the shade"
    assert knobs.comments(Lamp)["shade"] == ""
    assert list(knobs.comments(Lamp)) == ["watts", "colour", "shade", "name"]


def test_comments_are_of_fields_alone():
    assert knobs.comments(Lamp)["name"] == "what it is called"


def test_hints():
    assert knobs.hints(Lamp)["watts"] == Count
    assert knobs.hints(Lamp)["name"] is str


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (float | None, "a number or None"),
        (bool, "true or false"),
        (str, "text"),
        (Count, "a whole number, at least 1"),
        (Whole, "a whole number, at least 0"),
        (Probability, "a number, at least 0 and below 1"),
        (Positive, "a number, above 0"),
        (NonNegative, "a number, at least 0"),
        (Annotated[int, Range(high=8)], "a whole number, at most 8"),
        (Annotated[int, Range(high=2**31)], f"a whole number, at most {2**31}"),
        (Literal["warm", "cold"], "warm | cold"),
        (Lamp, "Lamp"),
    ],
)
def test_describe(declared, words):
    assert knobs.describe(declared) == words


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1, -math.inf, math.inf]),
        (Range(0, 1, above=True), [1e-300, 1], [0, -1]),
        (Range(0, 1, below=True), [0, 0.999], [1, 2]),
        (Range(low=4), [4, 10**9], [3]),
        (Range(high=4), [4, -(10**9)], [5]),
        (Range(), [0, -1e300, 1e300], []),
    ],
)
def test_range(limits, inside, outside):
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)


# ------------------------------------------------------------------------------ Text to values


@pytest.mark.parametrize(
    ("text", "declared", "value"),
    [
        ("12", int, 12),
        ("-12", int, -12),
        ("1e5", Count, 100_000),
        ("100_000", Count, 100_000),
        ("2.0", Count, 2),
        ("9007199254740993", Count, 2**53 + 1),
        ("0.1", Probability, 0.1),
        ("1e-9", Positive, 1e-9),
        ("2", Positive, 2.0),
        ("2", float | None, 2.0),
        ("None", float | None, None),
        ("0", NonNegative, 0.0),
        ("true", bool, True),
        ("True", bool, True),
        ("false", bool, False),
        ("cold", Literal["warm", "cold"], "cold"),
        ("12", str, "12"),
        ("", str, ""),
    ],
)
def test_read(text, declared, value):
    read = knobs.read(text, declared, "lamp.knob")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("", int),
        ("ten", Count),
        ("1.5", Count),
        ("0", Count),
        ("-1", Whole),
        ("inf", Count),
        ("1e999", Count),
        ("nan", Count),
        ("0x10", Count),
        ("1", Probability),
        ("1.5", Probability),
        ("-0.1", Probability),
        ("nan", Probability),
        ("nan", float),
        ("half", float),
        ("", float),
        ("none", float | None),
        ("nan", float | None),
        ("0", Positive),
        ("-1e-9", NonNegative),
        ("yes", bool),
        ("1", bool),
        ("", bool),
        ("", Literal["warm", "cold"]),
        ("worm", Literal["warm", "cold"]),
    ],
)
def test_text_that_spells_no_value(text, declared):
    with pytest.raises(UserError, match=r"--lamp\.knob"):
        knobs.read(text, declared, "lamp.knob")


# ------------------------------------------------------------------------------ Values


@pytest.mark.parametrize(
    ("value", "declared"),
    [(1, Count), (0.5, Probability), (True, bool), ("x", str), ("warm", Literal["warm", "cold"]), (Lamp(), Lamp)],
)
def test_check_gives_the_value_back(value, declared):
    assert knobs.check(value, declared, "lamp.knob") is value


def test_whole_number_does_for_a_float():
    for declared in (Positive, float | None):
        value = knobs.check(2, declared, "lamp.knob")
        assert value == 2.0
        assert type(value) is float


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (1.0, Count),
        (True, Count),
        (True, float),
        (1, bool),
        (None, Count),
        (3, str),
        (0, Count),
        (1.0, Probability),
        (1, Probability),
        (math.nan, float),
        (math.nan, Probability),
        ([1], Count),
        (None, Literal["warm", "cold"]),
        ({}, Lamp),
        (Lamp, Lamp),
    ],
)
def test_check_refuses(value, declared):
    with pytest.raises(UserError, match=r"--lamp\.knob"):
        knobs.check(value, declared, "lamp.knob")


def test_message_says_what_is_allowed_and_what_was_given():
    with pytest.raises(UserError, match=r"^--lamp.watts is a whole number, at least 1, not -4$"):
        knobs.check(-4, Count, "lamp.watts")
    with pytest.raises(UserError, match=r"^--lamp.watts is a whole number, at least 1, not 'ten'$"):
        knobs.read("ten", Count, "lamp.watts")
    with pytest.raises(UserError, match="'worm'; did you mean warm"):
        knobs.read("worm", Literal["warm", "cold"], "lamp.colour")


@dataclasses.dataclass(frozen=True)
class Wall:
    def plug(self):
        return self


def test_protocols_take_any_dataclass_that_has_their_methods():
    assert knobs.check(Wall(), Socket, "lamp.socket") == Wall()
    for no_socket in (3, "socket", None, Lamp()):
        with pytest.raises(UserError, match=r"--lamp\.socket is Socket, not"):
            knobs.check(no_socket, Socket, "lamp.socket")


@pytest.mark.parametrize(("value", "fine"), [(Lamp(), True), (None, True), (3, False)])
def test_unions(value, fine):
    if fine:
        assert knobs.check(value, Lamp | None, "lamp") == value
    else:
        with pytest.raises(UserError, match="--lamp"):
            knobs.check(value, Lamp | None, "lamp")
