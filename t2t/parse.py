"""What `t2t parse` makes of lines: a tree over the words of each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from t2t import drawing
from t2t.batch import EOS
from t2t.constraints import TreeConstraint, constraint_of
from t2t.data.linearisation import TreeVocabulary, tree_of
from t2t.data.parsing import Parsing, sentence
from t2t.data.vocabulary import Vocabularies
from t2t.decode import Hypothesis
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.lines import Line, most_tokens
from t2t.storage import write
from t2t.trees import TOP, Tree, bracketed

BRACKETS = str.maketrans({"(": "-LRB-", ")": "-RRB-"})  # how treebanks write them inside of words

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class ParsingConfig:
    """What is read and written for each line."""

    raw: bool = False  # split raw text into words first
    pretty: bool = False  # draw the tree, in place of a line of brackets
    svg: str = ""  # a folder for a picture of each tree, named by the number of its line


class ParseLines:
    """`t2t.lines.Work` for parsing."""

    def __init__(self, experiment: Experiment, vocabulary: Vocabularies, wanted: ParsingConfig, say: Say) -> None:
        """Raises UserError when the run is none of parsing, or pictures cannot be written."""
        if not isinstance(experiment.task, Parsing) or not isinstance(vocabulary.target, TreeVocabulary):
            raise UserError("this run does not parse: its outputs are text, by `t2t translate`")
        self._task, self._vocabulary, self._wanted, self._say = experiment.task, vocabulary, wanted, say
        self._source, self._most = vocabulary.source, most_tokens(experiment)
        if experiment.model.longest:  # a tree has more tokens than its sentence, some 2.5 for each, and must fit too
            self._most = max(2, min(self._most, experiment.model.longest // 4))
        _make(wanted.svg)
        self.wanted = 1
        self.repaired = 0  # outputs so far that were no trees

    def lines(self, texts: list[str], first: int) -> list[Line]:
        """Each line's words as tokens; a long line in pieces of whole words."""
        return [self._line(number, text) for number, text in enumerate(texts, first)]

    def _line(self, number: int, text: str) -> Line:
        words = split_raw(text) if self._wanted.raw else text.split()
        words = [word.translate(BRACKETS) for word in words]
        (ids,) = self._source.encode([sentence(words)])
        if len(ids) <= self._most:
            return Line(number, [ids] if words else [], [words] if words else [])
        parts = self._parts(words)
        self._say(f"line {number}: {len(ids)} tokens, parsed in {len(parts)} pieces, joined under {TOP}")
        pieces = self._source.encode([sentence(part) for part in parts])
        for part, ids in zip(parts, pieces, strict=True):
            if len(ids) > self._most:
                self._say(
                    f"line {number}: a word of {len(ids) - 1} tokens, {part[0][:20]!r}..., cut after {self._most}"
                )
        return Line(number, [self._cut(ids) for ids in pieces], parts)

    def _parts(self, words: list[str]) -> list[list[str]]:
        """As many words at a time as the model takes, at least one."""
        parts: list[list[str]] = [[]]
        room = self._most - 1  # EOS
        for word, ids in zip(words, self._source.encode([sentence([word]) for word in words]), strict=True):
            if (room := room - (len(ids) - 1)) < 0 and parts[-1]:
                parts.append([])
                room = self._most - len(ids)
            parts[-1].append(word)
        return parts

    def _cut(self, ids: list[int]) -> list[int]:
        """Of a piece, which is a single word when it is longer than the model takes."""
        return ids if len(ids) <= self._most else [*ids[: self._most - 1], EOS]

    def constraint(self, lines: list[Line]) -> TreeConstraint | None:
        """Trees over the words, unless the task says otherwise."""
        sentences = [" ".join(part) for line in lines for part in line.text or ()]
        return constraint_of(self._task, self._vocabulary, sentences)

    def answer(self, line: Line, found: list[list[Hypothesis]]) -> str:
        """The tree in a line of brackets, or drawn; nothing for a blank line."""
        if not found:
            return "\n"
        trees = [self._tree(best, words) for best, words in zip(found, line.text, strict=True)]
        tree = Tree(TOP, tuple(child for each in trees for child in each.children))
        if self._wanted.svg:
            write(Path(self._wanted.svg) / f"{line.number:06}.svg", drawing.svg(tree))
        return f"{drawing.text(tree)}\n" if self._wanted.pretty else f"{bracketed(tree)}\n"

    def _tree(self, best: list[Hypothesis], words: list[str]) -> Tree:
        tokens = self._vocabulary.target.decode(best[0].tokens).split()
        tree, repaired = tree_of(tokens, words)
        self.repaired += repaired
        return tree


def _make(folder: str) -> None:
    """Makes the folder for pictures, if there are to be any."""
    try:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None


def split_raw(text: str) -> list[str]:
    """The words of raw text as the Penn Treebank splits them: It's -> It 's, "so" -> `` so ''."""
    from nltk.tokenize.treebank import TreebankWordTokenizer  # a second to import, for those who ask for it

    return TreebankWordTokenizer().tokenize(text, convert_parentheses=True)
