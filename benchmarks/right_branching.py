"""The parser that knows nothing but that English branches to the right: its scores beside those of a trained one.

    python benchmarks/right_branching.py craft dev

Each word with all that follow it is a constituent. The outermost has the label that most sentences of the training
split have, the others the label that is most frequent there. Tags are those of the gold trees: EVALB tells punctuation
by them, so that without them hardly a sentence would count.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

from t2t import experiment
from t2t.data.parsing import Parsing
from t2t.errors import UserError
from t2t.trees import TOP, Tree, bracketed, leaves, parse, walk


def labels(trees: Iterator[Tree]) -> tuple[str, str]:
    """The most frequent label of whole sentences, and of constituents inside."""
    outer: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for tree in trees:
        inner.update(node.label for node, entering in walk(tree) if entering and not node.word)
        outer.update(child.label for child in tree.children if not child.word)
    inner -= outer
    del inner[TOP]
    return outer.most_common(1)[0][0], inner.most_common(1)[0][0]


def right_branching(words: list[Tree], outer: str, inner: str) -> Tree:
    """The tree over leaves; a single leaf has a constituent of its own."""
    *before, last = words
    tree = Tree(inner, (last,))
    for word in reversed(before):
        tree = Tree(inner, (word, tree))
    return Tree(TOP, (tree._replace(label=outer),))


def main() -> None:
    """Prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("split")
    args = parser.parse_args()
    task = experiment.get(args.experiment).task
    if not isinstance(task, Parsing):
        raise UserError(f"{args.experiment} does not parse")
    outer, inner = labels(parse(pair.target) for pair in task.pairs("train"))
    gold = [pair.target for pair in task.pairs(args.split)]
    guessed = [bracketed(right_branching(leaves(parse(tree)), outer, inner)) for tree in gold]
    print(f"right-branching, {outer} outermost and {inner} inside, gold tags; {args.split} split of {args.experiment}")
    for name, score in task.score(guessed, gold).items():
        print(f"{name:<19} {score.score:6.2f} [{score.low:.2f}, {score.high:.2f}] ({score.signature})")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"{error}") from None
