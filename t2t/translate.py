"""Lines in, lines out, in order: what `t2t translate` does between standard input and standard output."""

import dataclasses
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO

from t2t.batch import EOS
from t2t.data.vocabulary import Vocabulary
from t2t.decode import Hypothesis, SamplingConfig, decode
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.knobs import Count

CHUNK = 1024  # lines that are enough to be sorted by length and decoded
PATIENCE = 0.05  # seconds from the first line at hand until those at hand are decoded: a person may be typing
SENTENCE_ENDS = (".", "!", "?", ";", ":", "…")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
    """What is written for each line."""

    n_best: Count = 1  # lines out for each line in
    scores: bool = False  # put each output's score and a tab before it
    too_long: Literal["split", "cut"] = "split"  # what becomes of a line with more tokens than the model takes
    sampling: SamplingConfig | None = None  # draw the output instead of searching for the best


class Line(NamedTuple):
    """A line of input as what is to be decoded: no pieces for a blank or an unreadable one."""

    number: int
    pieces: list[list[int]]  # token ids, EOS at the end of each


def stream(
    experiment: Experiment,
    vocabulary: Vocabulary,
    params: Any,
    wanted: TranslationConfig,
    lines: BinaryIO,
    out: TextIO,
    say: Say,
) -> int:
    """Translates `lines` until they end, and writes as soon as order allows.

    `lines` has a file descriptor. Returns 0, or 2 when lines were not UTF-8: each is named by `say` and answered by an
    empty line.

    Raises:
        UserError: more outputs a line wanted than there are, or the input cannot be read.
    """
    if wanted.n_best > (1 if wanted.sampling else experiment.decoding.beam):
        if wanted.sampling:
            raise UserError(f"--n_best {wanted.n_best} does not go with --sample: one output is drawn for a line")
        raise UserError(f"--n_best {wanted.n_best} needs a beam as wide; --beam is {experiment.decoding.beam}")
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
        most = min(experiment.decoding.max_input, experiment.model.longest or experiment.decoding.max_input)
        jobs = _jobs(texts, first, vocabulary, most, wanted.too_long, say)
        for answer in _answers(experiment, vocabulary, params, wanted, jobs):
            out.write(answer)
            out.flush()
        first += len(chunk)
    return 2 if unreadable else 0


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


def _jobs(texts: list[str], first: int, vocabulary: Vocabulary, most: int, too_long: str, say: Say) -> list[Line]:
    jobs = []
    for number, (text, ids) in enumerate(zip(texts, vocabulary.encode(texts), strict=True), first):
        pieces = [ids] if text.strip() else []
        if len(ids) > most:
            pieces = split(ids, vocabulary.pieces(ids), most)
            done = f"translated in {len(pieces)} pieces" if too_long == "split" else f"cut after {most}"
            pieces = pieces if too_long == "split" else [[*ids[: most - 1], EOS]]
            say(f"line {number}: {len(ids)} tokens, {done}")
        jobs.append(Line(number, pieces))
    return jobs


def split(ids: list[int], pieces: list[str], most: int) -> list[list[int]]:
    """Parts of at most `most` tokens, EOS counted, each with EOS: cut after a sentence's end, else between words.

    ids and pieces: the same line as ids and as text, the last of each EOS. A word that is too long is cut inside.
    """
    parts, start, end = [], 0, len(ids) - 1
    while end - start > most - 1:
        window = range(start + 1, start + most)  # places to cut before
        words = [i for i in window if pieces[i].startswith("▁")]
        sentences = [i for i in words if pieces[i - 1].endswith(SENTENCE_ENDS) and i - start > most // 2]
        cut = (sentences or words or window)[-1]
        parts.append([*ids[start:cut], EOS])
        start = cut
    return [*parts, ids[start:]]


def _answers(
    experiment: Experiment, vocabulary: Vocabulary, params: Any, wanted: TranslationConfig, jobs: list[Line]
) -> Iterator[str]:
    """The output of each line as soon as all lines before it have theirs."""
    where = [(line, part) for line, job in enumerate(jobs) for part in range(len(job.pieces))]
    sources = [jobs[line].pieces[part] for line, part in where]
    found: list[list[list[Hypothesis]]] = [[[] for _ in job.pieces] for job in jobs]
    missing = [len(job.pieces) for job in jobs]
    numbers = [(jobs[line].number, part) for line, part in where]
    model, written, longest = experiment.model.build(), 0, experiment.model.longest
    for i, best in decode(model, params, sources, experiment.decoding, wanted.sampling, numbers, longest):
        line, part = where[i]
        found[line][part] = best
        missing[line] -= 1
        while written < len(jobs) and not missing[written]:
            yield _answer(found[written], vocabulary, wanted)
            written += 1
    for parts in found[written:]:  # blank lines after the last sentence
        yield _answer(parts, vocabulary, wanted)


def _answer(parts: list[list[Hypothesis]], vocabulary: Vocabulary, wanted: TranslationConfig) -> str:
    """The `n_best` lines for a line of input: the nth best of each of its parts, joined; their scores added."""
    lines = []
    for rank in range(wanted.n_best):
        if not parts or rank >= max(map(len, parts)):
            lines.append("\n")
            continue
        chosen = [best[min(rank, len(best) - 1)] for best in parts]
        text = " ".join(vocabulary.decode(hypothesis.tokens) for hypothesis in chosen)
        score = f"{sum(hypothesis.score for hypothesis in chosen):.6f}\t" if wanted.scores else ""
        lines.append(f"{score}{text}\n")
    return "".join(lines)
