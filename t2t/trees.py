"""Constituency trees: bracketed text to trees and back, and what the field cleans away before it parses.

Nothing here recurses, so that no tree is too deep for Python; one deeper than MAX_DEPTH is refused as broken.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

TOP = "TOP"  # the outer label, which no scorer counts
OUTER = (TOP, "ROOT", "S1")  # what treebanks and parsers call it
PUNCTUATION = {",", ":", "``", "''", "."}  # tags of words that no scorer counts
TRACE = "-NONE-"  # the tag of what is not said: traces, empty complementizers
MAX_DEPTH = 400  # nodes inside one another; the deepest tree of the WSJ or CRAFT has some 40
# A whole leaf, as tag and word, or else a bracket or what stands between brackets: most of a tree is leaves.
TOKEN = re.compile(r"\(\s*([^\s()]+)\s+([^\s()]+)\s*\)|([()]|[^\s()]+)")


class Tree(NamedTuple):
    """A constituent with children, or a leaf: a tag over a word."""

    label: str
    children: tuple["Tree", ...] = ()
    word: str = ""  # of a leaf


class BrokenTree(ValueError):
    """What is wrong with bracketed text, and in which of the lines, counted from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def walk(tree: Tree) -> Iterator[tuple[Tree, bool]]:
    """Every node depth first: (constituent, True) when entered, (constituent, False) when left; (leaf, True) once."""
    waiting = [(tree, True)]
    while waiting:
        node, entering = waiting.pop()
        yield node, entering
        if entering and not node.word:
            waiting.append((node, False))
            waiting += [(child, True) for child in reversed(node.children)]


def leaves(tree: Tree) -> list[Tree]:
    """The leaves from left to right."""
    return [node for node, _ in walk(tree) if node.word]


def words(tree: Tree) -> list[str]:
    """The words from left to right."""
    return [leaf.word for leaf in leaves(tree)]


def bracketed(tree: Tree) -> str:
    """One line: (TOP (S (NP (PRP It)) (VP (VBZ works)) (. .)))."""
    parts: list[str] = []
    for node, entering in walk(tree):
        if node.word:
            parts.append(f" ({node.label} {node.word})")
        else:
            parts.append(f" ({node.label}" if entering else ")")
    return "".join(parts).lstrip()


# ------------------------------------------------------------------------------ Reading


def read(lines: Iterable[str], depth: int = MAX_DEPTH - 1) -> Iterator[Tree]:
    """The trees of bracketed text: one or many a line, one line or many a tree; of at most `depth` levels.

    That is one less than `parse` takes, for cleaning may add the outermost.

    Raises:
        BrokenTree: brackets that do not match, a word without a tag, a constituent without children, and the like.
    """
    reader = _Reader(depth)
    for number, line in enumerate(lines, 1):
        reader.number = number
        for tag, word, token in TOKEN.findall(line):
            done = reader.take(token) if token else reader.leaf(tag, word)
            if done:
                yield done
    reader.end()


def parse(text: str) -> Tree:
    """The one tree in `text`; raises BrokenTree for none, for several, and as `read` does."""
    found = list(read(text.split("\n"), MAX_DEPTH))
    if len(found) != 1:
        raise BrokenTree(1, f"{len(found)} trees where one belongs")
    return found[0]


class _Open:
    """A constituent that is not closed yet."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.words: list[str] = []  # its label, and of a leaf the word
        self.children: list[Tree] = []


class _Reader:
    """What has been read of the tree at hand."""

    def __init__(self, depth: int) -> None:
        self.number, self._depth = 1, depth
        self._open: list[_Open] = []

    def take(self, token: str) -> Tree | None:
        """One token further; the tree when it is whole."""
        if token == "(":
            self._begin()
        elif token != ")":
            self._word(token)
        elif not self._open:
            raise BrokenTree(self.number, "a closing bracket without an opening one")
        else:
            return self._done(self._made(self._open.pop()))
        return None

    def leaf(self, tag: str, word: str) -> Tree | None:
        """A leaf further; itself when it is a tree of its own."""
        self._check_room()
        return self._done(Tree(tag, word=word))

    def _done(self, made: Tree) -> Tree | None:
        if not self._open:
            return made
        self._open[-1].children.append(made)
        return None

    def end(self) -> None:
        """Raises BrokenTree unless all that was opened is closed."""
        if self._open:
            first = self._open[0].line
            raise BrokenTree(self.number, f"the text ends inside the tree that begins in line {first}")

    def _begin(self) -> None:
        self._check_room()
        self._open.append(_Open(self.number))

    def _check_room(self) -> None:
        if len(self._open) == self._depth:
            raise BrokenTree(self.number, f"more than {self._depth} constituents inside one another")
        if self._open and len(self._open[-1].words) > 1:
            raise _untagged(self.number, self._open[-1].words[1])

    def _word(self, token: str) -> None:
        if not self._open:
            raise BrokenTree(self.number, f"{token!r} stands outside of a tree")
        if self._open[-1].children:
            raise _untagged(self.number, token)
        self._open[-1].words.append(token)

    def _made(self, done: _Open) -> Tree:
        label, *words = done.words or [""]
        if len(words) > 1:
            raise BrokenTree(self.number, f"the tag {label} has {len(words)} words: {' '.join(words[:3])}")
        if words:
            return Tree(label, word=words[0])
        if not done.children:
            raise BrokenTree(self.number, f"({label}) has neither a word nor children")
        if not label and self._open:
            raise BrokenTree(self.number, "a constituent without a label; only the outermost may lack it")
        return Tree(label, tuple(done.children))


def _untagged(line: int, word: str) -> BrokenTree:
    return BrokenTree(line, f"the word {word!r} has no tag of its own")


# ------------------------------------------------------------------------------ Cleaning


def clean(tree: Tree, counts: Counter[str]) -> Tree | None:
    """The tree as parsers are trained on it; None when no word is left.

    Traces go, and then constituents without a word; function tags and indices are cut off labels ("NP-SBJ-1" becomes
    "NP"); the outer label is TOP. `counts` is told how often each was done.
    """
    open_: list[list[Tree]] = [[]]
    for node, entering in walk(tree):
        if node.word and node.label == TRACE:
            counts["traces"] += 1
        elif node.word:
            open_[-1].append(node)
        elif entering:
            open_.append([])
        elif children := open_.pop():
            label = plain(node.label)
            counts["function tags"] += label != node.label
            open_[-1].append(Tree(label, tuple(children)))
        else:
            counts["empty constituents"] += 1
    if not open_[0]:
        return None
    (root,) = open_[0]
    if root.label == TOP and not root.word:
        return root
    counts["outer labels"] += 1
    return Tree(TOP, root.children if root.label in ("", *OUTER) and not root.word else (root,))


def plain(label: str) -> str:
    """A label without function tags and indices: what stands before the first "-" or "=", unless that is nothing."""
    return re.split("[-=]", label, maxsplit=1)[0] or label
