"""What `t2t translate` makes of lines: the text of the best hypotheses, long lines in pieces."""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

from t2t.batch import EOS
from t2t.data.vocabulary import Vocabularies
from t2t.decode import Hypothesis, SamplingConfig
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.knobs import Count
from t2t.lines import Line, most_tokens

SENTENCE_ENDS = (".", "!", "?", ";", ":", "…")
LANGUAGE = re.compile(">>.+<<")  # the piece by which a model of several target languages is told which

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
    """What is written for each line."""

    n_best: Count = 1  # lines out for each line in
    scores: bool = False  # put each output's score and a tab before it
    too_long: Literal["split", "cut"] = "split"  # what becomes of a line with more tokens than the model takes
    sampling: SamplingConfig | None = None  # draw the output instead of searching for the best


class TranslateLines:
    """`t2t.lines.Work` for translation."""

    def __init__(self, experiment: Experiment, vocabulary: Vocabularies, wanted: TranslationConfig, say: Say) -> None:
        """Raises UserError when more outputs a line are wanted than there are, or the run does not translate."""
        if experiment.task.linearisation:
            raise UserError("this run parses: its outputs are trees, by `t2t parse`")
        if not experiment.task.has_sources:
            raise UserError("this run models text and translates nothing: it is drawn from by `t2t sample`")
        if wanted.n_best > (1 if wanted.sampling else experiment.decoding.beam):
            if wanted.sampling:
                raise UserError(f"--n_best {wanted.n_best} does not go with --sample: one output is drawn for a line")
            raise UserError(f"--n_best {wanted.n_best} needs a beam as wide; --beam is {experiment.decoding.beam}")
        self._vocabulary, self._wanted, self._say = vocabulary, wanted, say
        self._most, self.wanted = most_tokens(experiment), wanted.n_best

    def lines(self, texts: list[str], first: int) -> list[Line]:
        """Each line's tokens; of a long one in pieces, or cut."""
        ids = self._vocabulary.source.encode(texts)
        return [Line(n, self._pieces(n, *each)) for n, each in enumerate(zip(texts, ids, strict=True), first)]

    def _pieces(self, number: int, text: str, ids: list[int]) -> list[list[int]]:
        if len(ids) <= self._most:
            return [ids] if text.strip() else []
        written = self._vocabulary.source.pieces(ids)
        told = self._most > 2 and bool(LANGUAGE.fullmatch(written[0]))  # a line says it for all of its parts
        pieces = [[*ids[:told], *part] for part in split(ids[told:], written[told:], self._most - told)]
        done = f"translated in {len(pieces)} pieces" if self._wanted.too_long == "split" else f"cut after {self._most}"
        self._say(f"line {number}: {len(ids)} tokens, {done}")
        return pieces if self._wanted.too_long == "split" else [[*ids[: self._most - 1], EOS]]

    def constraint(self, lines: list[Line]) -> None:
        """Text may be anything."""

    def answer(self, line: Line, found: list[list[Hypothesis]]) -> str:
        """The `n_best` lines for a line of input: the nth best of each of its pieces, joined; their scores added."""
        answers = []
        for rank in range(self._wanted.n_best):
            if not found or rank >= max(map(len, found)):
                answers.append("\n")
                continue
            chosen = [best[min(rank, len(best) - 1)] for best in found]
            text = " ".join(self._vocabulary.target.decode(hypothesis.tokens) for hypothesis in chosen)
            score = f"{sum(hypothesis.score for hypothesis in chosen):.6f}\t" if self._wanted.scores else ""
            answers.append(f"{score}{text}\n")
        return "".join(answers)


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
