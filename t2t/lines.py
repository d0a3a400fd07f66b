"""Lines in, lines out, in order, as they come: what verbs do between standard input and standard output."""

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol, TextIO

from t2t.decode import Constraint, Hypothesis, SamplingConfig, decode
from t2t.errors import UserError
from t2t.experiment import Experiment

CHUNK = 1024  # lines that are enough to be sorted by length and decoded
PATIENCE = 0.05  # seconds from the first line at hand until those at hand are decoded: a person may be typing

Say = Callable[[str], None]


class Line(NamedTuple):
    """A line of input as what is to be decoded: no pieces for a blank or an unreadable one."""

    number: int  # from 1
    pieces: list[list[int]]  # token ids, EOS at the end of each
    text: Any = None  # whatever its answer needs to know


class Work(Protocol):
    """What a verb makes of lines."""

    wanted: int  # hypotheses of each piece that an answer is made of, at most

    def lines(self, texts: list[str], first: int) -> list[Line]:
        """What is to be decoded for each text; `first` is the number of the first one."""
        ...

    def constraint(self, lines: list[Line]) -> Constraint | None:
        """What the outputs of all pieces of all lines, in order, must obey."""
        ...

    def answer(self, line: Line, found: list[list[Hypothesis]]) -> str:
        """What is written for a line; found: of each of its pieces the hypotheses, best first."""
        ...


class Engine(Protocol):
    """What searches for the best outputs in place of `decode`, with weights of its own."""

    def __call__(self, sources: list[list[int]]) -> Iterator[tuple[int, list[Hypothesis]]]:
        """(index, hypotheses, best first) of each source, in any order."""
        ...


def stream(
    experiment: Experiment,
    params: Any,
    work: Work,
    sampling: SamplingConfig | None,
    lines: BinaryIO,
    out: TextIO,
    say: Say,
    engine: Engine | None = None,
) -> int:
    """Answers `lines` until they end, and writes as soon as order allows.

    `lines` has a file descriptor. With an `engine`, `params` are not looked at. Returns 0, or 2 when lines were not
    UTF-8: each is named by `say` and answered like a blank one.

    Raises:
        UserError: the input cannot be read.
    """
    first, unreadable = 1, 0
    for chunk in _chunks(lines):
        texts = []
        for number, raw in enumerate(chunk, first):
            try:
                texts.append(raw.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                unreadable += 1
                texts.append("")
                say(f"line {number}: not UTF-8 (byte {error.start + 1}); an empty line stands for it")
        for answer in _answers(experiment, params, work, sampling, work.lines(texts, first), engine):
            out.write(answer)
            out.flush()
        first += len(chunk)
    return 2 if unreadable else 0


def most_tokens(experiment: Experiment) -> int:
    """Tokens, EOS counted, that a piece may have."""
    return min(experiment.decoding.max_input, experiment.model.longest or experiment.decoding.max_input)


def _chunks(lines: BinaryIO) -> Iterator[list[bytes]]:
    """The lines that have come so far, as often as some have; the last one may lack its end.

    Raises:
        UserError: the input cannot be read.
    """
    descriptor, rest, ended = lines.fileno(), b"", False
    while not ended:
        deadline = None  # when to answer what is there; none before there is something
        ready: list[bytes] = []
        while not ended and len(ready) < CHUNK:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], wait)[0]:
                break
            try:
                block = os.read(descriptor, 1 << 16)
            except OSError as error:
                raise UserError(f"cannot read standard input: {error.strerror}") from None
            ended = not block
            *whole, rest = (rest + block).split(b"\n")
            ready += whole
            if ready and deadline is None:
                deadline = time.monotonic() + PATIENCE
        if ended and rest:
            ready.append(rest)
        if ready:
            yield ready


def _answers(
    experiment: Experiment,
    params: Any,
    work: Work,
    sampling: SamplingConfig | None,
    lines: list[Line],
    engine: Engine | None,
) -> Iterator[str]:
    """The answer to each line as soon as all lines before it have theirs."""
    where = [(i, part) for i, line in enumerate(lines) for part in range(len(line.pieces))]
    sources = [lines[i].pieces[part] for i, part in where]
    found: list[list[list[Hypothesis]]] = [[[] for _ in line.pieces] for line in lines]
    missing = [len(line.pieces) for line in lines]
    numbers = [(lines[i].number, part) for i, part in where]
    model, written, longest = experiment.model.build(), 0, experiment.model.longest
    how = (sampling, numbers, longest, work.constraint(lines), work.wanted)
    ours = decode(model, params, sources, experiment.decoding, *how)
    for index, best in engine(sources) if engine else ours:
        i, part = where[index]
        found[i][part] = best
        missing[i] -= 1
        while written < len(lines) and not missing[written]:
            yield work.answer(lines[written], found[written])
            written += 1
    for line, parts in zip(lines[written:], found[written:], strict=True):  # blank lines after the last sentence
        yield work.answer(line, parts)
