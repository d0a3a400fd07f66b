"""Trees as sequences of tokens, and back (Vinyals et al. 2015): (S (NP PRP )NP (VP VBZ )VP . )S

A token opens a constituent, closes one, or is a leaf's tag; the outer TOP and the words are left out.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from t2t.batch import EOS, PAD, UNK
from t2t.errors import UserError
from t2t.trees import MAX_DEPTH, PUNCTUATION, TOP, BrokenTree, Tree, leaves, parse, walk

DEPTH = MAX_DEPTH - 2  # constituents inside one another in an output: with TOP and a leaf, what a tree file may have
ANY = "XX"  # the tag of all words when tags are left out
SPECIAL = {PAD: "<pad>", EOS: "<eos>", UNK: "<unk>"}
OPEN, CLOSE, LEAF = "open", "close", "leaf"
RARE = 0.01  # share of a word's occurrences with a tag below which the tag is taken for a slip
Tags = Literal["keep", "XX"]


def kind(token: str) -> Literal["open", "close", "leaf"]:
    """Whether a token opens a constituent, closes one, or is a leaf's tag."""
    return OPEN if token[0] == "(" else CLOSE if token[0] == ")" else LEAF


@dataclasses.dataclass(frozen=True)
class Linearisation:
    """How trees become tokens."""

    tags: Tags = "keep"  # part-of-speech tags: as they are, or XX for all but punctuation

    def tokens(self, tree: Tree) -> list[str]:
        """The tree's tokens. Its outer label must be TOP, as cleaning makes it."""
        found = []
        for node, entering in walk(tree):
            if node.word:
                found.append(self.tag(node.label))
            elif node is not tree:
                found.append(f"({node.label}" if entering else f"){node.label}")
        return found

    def tag(self, tag: str) -> str:
        """A leaf's token; scorers tell punctuation by its tag."""
        return tag if self.tags == "keep" or tag in PUNCTUATION else ANY


def restore(tokens: Sequence[str], words: Sequence[str]) -> Tree:
    """The inverse of `Linearisation.tokens`: the tree of `tokens` over `words`.

    Raises:
        ValueError: the tokens are no tree, or one deeper than a tree file may have, or have not as many leaves as there
            are words.
    """
    open_: list[tuple[str, list[Tree]]] = [(TOP, [])]
    left = list(reversed(words))
    for token in tokens:
        match kind(token):
            case "open" if len(open_) <= DEPTH:
                open_.append((token[1:], []))
            case "leaf" if left:
                open_[-1][1].append(Tree(token, word=left.pop()))
            case "close" if len(open_) > 1 and open_[-1][0] == token[1:] and open_[-1][1]:
                label, children = open_.pop()
                open_[-1][1].append(Tree(label, tuple(children)))
            case _:
                raise ValueError(f"{token} cannot stand here")
    if len(open_) > 1 or left or not words:
        raise ValueError(f"{len(open_) - 1} constituents are open and {len(left)} words are left at the end")
    return Tree(TOP, tuple(open_[0][1]))


def repair(tokens: Sequence[str], words: Sequence[str]) -> Tree:
    """A tree over `words` that follows `tokens` as far as they make sense.

    A closing token closes the innermost constituent of its label and all inside it, or nothing if there is none; a
    leaf too many is left out, missing ones are tagged XX under the outermost constituent; empty constituents vanish,
    and so do those deeper than a tree file may have.
    """
    open_: list[tuple[str, list[Tree]]] = [(TOP, [])]
    left = list(reversed(words))

    def close() -> None:
        label, children = open_.pop()
        if children:
            open_[-1][1].append(Tree(label, tuple(children)))

    for token in tokens:
        if kind(token) == OPEN:
            if len(open_) <= DEPTH:
                open_.append((token[1:], []))
        elif kind(token) == LEAF:
            if left:
                open_[-1][1].append(Tree(token, word=left.pop()))
        elif token[1:] in (label for label, _ in open_[1:]):
            while open_[-1][0] != token[1:]:
                close()
            close()
    while len(open_) > 2:
        close()
    open_[-1][1].extend(Tree(ANY, word=word) for word in reversed(left))
    if len(open_) > 1:
        close()
    return Tree(TOP, tuple(open_[0][1]))


def tree_of(tokens: Sequence[str], words: Sequence[str]) -> tuple[Tree, bool]:
    """The tree that `tokens` are, and False; or else their repair, and True."""
    try:
        return restore(tokens, words), False
    except ValueError:
        return repair(tokens, words), True


# ------------------------------------------------------------------------------ Tokens as numbers


class Alphabet(NamedTuple):
    """What a tree vocabulary consists of."""

    size: int  # rows of the model's table; more than there are tokens is no harm
    tokens: tuple[str, ...]  # of trees, the most frequent first; the first has the id 3
    linearisation: Linearisation
    marks: Mapping[str, tuple[str, ...]] = {}  # each word without letter or digit: its usual tags in training


class TreeVocabulary:
    """Trees to token ids and back. Ids 0, 1 and 2 are padding, end of tree and unknown."""

    def __init__(self, alphabet: Alphabet) -> None:
        """Raises UserError when `size` has no room for all tokens."""
        self.alphabet = alphabet
        self.tokens = [*SPECIAL.values(), *alphabet.tokens]
        if len(self.tokens) > alphabet.size:
            raise UserError(
                f"--model.target_vocab_size {alphabet.size} is too few for the trees: at least {len(self.tokens)}"
            )
        self._ids = {token: i for i, token in enumerate(self.tokens) if i >= len(SPECIAL)}
        every = tuple(i for token, i in self._ids.items() if kind(token) == LEAF)
        no_marks = tuple(i for i in every if self.tokens[i] not in PUNCTUATION) or every
        known = {word: tuple(self._ids[tag] for tag in tags) for word, tags in alphabet.marks.items()}
        self.tag_sets = [every, no_marks, *known.values()]  # ids of tags
        self._tag_set_of = {word: i for i, word in enumerate(known, 2)}

    @classmethod
    def of(cls, counted: "Counted", size: int, linearisation: Linearisation) -> "TreeVocabulary":
        """A vocabulary of all tokens that were counted."""
        counts, marks = counted
        if not counts:
            raise UserError("no trees to make a vocabulary from")
        tokens = sorted(counts, key=lambda token: (-counts[token], token))
        known = {word: _usual(tags) for word, tags in sorted(marks.items())}
        return cls(Alphabet(size, tuple(tokens), linearisation, known))

    @classmethod
    def loads(cls, text: bytes, where: str) -> "TreeVocabulary":
        """The inverse of `model`; raises UserError for anything else."""
        try:
            found = json.loads(text)
            size, tags, tokens = int(found["size"]), found["tags"], found["tokens"]
            marks = {str(word): tuple(map(str, its_tags)) for word, its_tags in found["marks"].items()}
            if not isinstance(tokens, list) or not _whole(tokens) or tags not in get_args(Tags):
                raise ValueError("it is none of ours")
            if not all(its_tags and {*its_tags} <= {*tokens} for its_tags in marks.values()):
                raise ValueError("a mark has no tag of a tree's")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(f"{where} is not a vocabulary of trees") from None
        return cls(Alphabet(size, tuple(tokens), Linearisation(tags), marks))

    @property
    def model(self) -> bytes:
        """All there is to it, as JSON."""
        return json.dumps({**self._meaning(), "marks": self.alphabet.marks}, indent=1, ensure_ascii=False).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model's weights depend on: all but the marks."""
        return hashlib.sha256(json.dumps(self._meaning(), indent=1).encode()).hexdigest()

    def _meaning(self) -> dict[str, Any]:
        size, tokens, linearisation, _ = self.alphabet
        return {"size": size, "tags": linearisation.tags, "tokens": tokens}

    def __len__(self) -> int:
        return self.alphabet.size

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each bracketed tree, EOS at the end of each; a blank line is EOS alone.

        Raises:
            UserError: a text is no tree.
        """
        return [[*(self._ids.get(token, UNK) for token in self._tokens(text)), EOS] for text in texts]

    def _tokens(self, text: str) -> list[str]:
        if not text.strip():
            return []
        try:
            return self.alphabet.linearisation.tokens(parse(text))
        except BrokenTree as error:
            raise UserError(f"not a tree: {text[:60]!r}: {error.reason}") from None

    def tag_set(self, word: str) -> int:
        """Which of `tag_sets` a word may have; the first is all tags.

        A word with a letter or digit is no punctuation; another has a tag that it had in training (RARE ones not
        counted), or any if it was never there. Without this a single slip of the tagger moves all tags after it, and to
        EVALB, which knows punctuation by its tag, the sentence is not the same any more.
        """
        return self._tag_set_of.get(word, 1 if is_text(word) else 0)

    def pieces(self, ids: list[int]) -> list[str]:
        """The tokens as text, special ones included; an id above those in use is one that is not known."""
        return [self.tokens[i if i < len(self.tokens) else UNK] for i in ids]

    def decode(self, ids: list[int]) -> str:
        """The tokens of ids between spaces, up to the first EOS; an id that is none of a tree's is left out."""
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        return " ".join(self.tokens[i] for i in ids if len(SPECIAL) <= i < len(self.tokens))


def _usual(tags: Counter[str]) -> tuple[str, ...]:
    """The tags that are not RARE."""
    return tuple(sorted(tag for tag, count in tags.items() if count >= RARE * tags.total()))


def _whole(tokens: list[Any]) -> bool:
    """Whether each is a token, none stands twice, and all that open have one that closes and the other way round."""
    if not all(isinstance(token, str) and token for token in tokens) or len({*tokens}) < len(tokens):
        return False
    opening, closing = ({token[1:] for token in tokens if kind(token) == which} for which in (OPEN, CLOSE))
    return opening == closing


class Counted(NamedTuple):
    """What training trees consist of."""

    tokens: Counter[str]
    marks: dict[str, Counter[str]]  # each word without letter or digit: how often it had which tag

    def add(self, texts: Iterable[str], linearisation: Linearisation) -> "Counted":
        """Adds bracketed trees; itself."""
        for text in texts:
            tree = parse(text)
            self.tokens.update(linearisation.tokens(tree))
            for leaf in leaves(tree):
                if not is_text(leaf.word):
                    self.marks.setdefault(leaf.word, Counter())[linearisation.tag(leaf.label)] += 1
        return self


def is_text(word: str) -> bool:
    """Whether a word has a letter or a digit; the names of brackets, such as -LRB-, are marks."""
    return any(map(str.isalnum, word)) and not re.fullmatch("-[LR][RCS]B-", word)
