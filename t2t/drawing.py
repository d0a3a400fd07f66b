"""Trees as drawings, by NLTK; and what text may stand in any picture."""

import re
from typing import Any

from t2t.trees import Tree, bracketed

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # characters that no XML may have


def text(tree: Tree) -> str:
    """The tree as lines of text, the words at the bottom; below it an empty line."""
    return _printer(tree).text(unicodelines=True) + "\n"


def svg(tree: Tree) -> str:
    """The tree as a picture."""
    return whole(_printer(tree).svg())


def whole(picture: str) -> str:
    """An SVG that browsers read, whatever characters its text brought along."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", picture)


def _printer(tree: Tree) -> Any:
    from nltk.tree import Tree as Drawn  # a second to import, for those who draw
    from nltk.tree.prettyprinter import TreePrettyPrinter

    return TreePrettyPrinter(Drawn.fromstring(bracketed(tree)))
