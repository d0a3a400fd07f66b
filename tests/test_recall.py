"""The toy of long-range dependencies: its lines are what it says, it is learnt, and its page says what was found."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from t2t import cost
from t2t.data.recall import Recall
from t2t.errors import UserError
from t2t.experiment import get, override, registered
from t2t.train import abstract_state

ROOT = Path(__file__).parent.parent
NAMES = ("transformer", "language_model", "restricted", "recurrent", "convolutional")


@pytest.fixture(scope="module")
def recall():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("recall")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Distances of 2 and 4, two words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2T_DATA", str(tmp_path_factory.mktemp("cache")))
        yield override(
            get("recall_transformer"),
            {
                "task.corpus.longest": 4,
                "task.corpus.trained": 4,
                "task.corpus.words": 2,
                "task.corpus.lines": 400,
                "model": get("recall_language_model").model,
                "model.vocab_size": 12,
                "model.num_layers": 1,
                "model.d_model": 32,
                "model.d_ff": 32,
                "optimizer.warmup_steps": 20,
                "batching.tokens": 256,
                "batching.max_length": 8,
                "batching.shapes": 1,
                "train_steps": 60,
                "evaluate_every": 60,
                "checkpoint_every": 60,
                "mesh.data": 1,
            },
        )


# ------------------------------------------------------------------------------ Lines


def test_a_line_ends_with_the_word_it_began_with():
    corpus = Recall(trained=100, lines=500)
    lines = [pair.target.split() for pair in corpus.pairs("train")]
    assert len(lines) == 500 and {first for first, *_ in lines} == set("abcdefghijklmnop")
    for first, *between, question, last in lines:
        assert (last, question) == (first, "?") and set(between) <= {"."}
    assert min(map(len, lines)) == 3 and max(map(len, lines)) <= 101
    assert all(source == target for source, target in corpus.pairs("train"))


def test_short_distances_are_as_many_as_long_ones():
    distances = np.array([len(pair.target.split()) - 1 for pair in Recall(trained=1023, lines=9000).pairs("train")])
    share, _ = np.histogram(distances, 2 ** np.arange(1, 11))
    assert share.sum() == 9000 and np.abs(share / 1000 - 1).max() < 0.12


def test_other_splits_have_every_word_at_every_power_of_two():
    corpus = Recall(longest=1024, words=3)
    assert corpus.distances == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for split in ("dev", "test"):
        found = [(pair.target[0], len(pair.target.split()) - 1) for pair in corpus.pairs(split)]
        assert sorted(found) == sorted((word, n) for word in "abc" for n in corpus.distances)
    assert Recall(longest=70).distances[-1] == 64


def test_lines_are_a_function_of_the_knobs():
    pairs, others = (list(Recall(lines=50, seed=seed).pairs("train")) for seed in (0, 1))
    assert pairs == list(Recall(lines=50).pairs("train")) != others
    digests = [*Recall().inputs("train").values(), *Recall(seed=1).inputs("train").values()]
    assert digests[0] == next(iter(Recall().inputs("train").values())) != digests[1]
    with pytest.raises(UserError, match="no split 'tset'; did you mean test"):
        Recall().pairs("tset")


# ------------------------------------------------------------------------------ Experiments


def _count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_same_budget_for_each():
    found = [registered()[f"recall_{name}"] for name in NAMES]
    for each in found[1:]:
        assert each.base == "recall_transformer"
        budget = ("task", "optimizer", "batching", "train_steps", "seed", "label_smoothing")
        assert [getattr(each, name) for name in budget] == [getattr(found[0], name) for name in budget]
    decoders = [_count(abstract_state(each).params["params"]["decoder"]) for each in found]
    assert decoders == [99_456, 99_648, 99_456, 100_502, 99_840]
    assert min(each.model.longest or 2000 for each in found) >= found[0].task.corpus.longest + 2
    assert found[0].batching.max_length >= found[0].task.corpus.trained + 2  # the word again, and EOS


def test_what_is_four_steps_away_is_learnt(recall, small, tmp_path):
    found = recall.trained(small, tmp_path / "run")
    assert found["accuracy"] == {2: 1.0, 4: 1.0} and found["steps"] == 60
    assert found["parameters"] == cost.parameters(small)


def test_accuracy_is_of_the_last_word(recall, small, monkeypatch):
    """A model that says "a" everywhere is right for half of the two words."""
    from t2t.data.prepare import Sizes, prepare

    vocabulary = prepare(small.task, Sizes(12), print).vocabulary
    ((a, *_),) = vocabulary.target.encode(["a"])
    says_a = lambda params, source, target: np.eye(12)[np.full(target.tokens.shape, a)]  # noqa: E731
    monkeypatch.setattr(type(small.model), "build", lambda _: type("Model", (), {"apply": staticmethod(says_a)}))
    monkeypatch.setattr(recall.jax, "jit", lambda function: function)
    assert recall.accuracy(small, vocabulary, None) == {2: 0.5, 4: 0.5}


# ------------------------------------------------------------------------------ What is shown


def test_the_page_and_the_picture_say_what_was_found(recall, tmp_path):
    page = sys.modules["page"]
    run = {"experiment": "recall_recurrent", "decoder": 1234, "steps": 60, "seconds": 90.0}
    found = {
        "kind": "recall",
        "words": 16,
        "trained": 64,
        **page.origin(["a command"]),
        "runs": [run | {"accuracy": {"2": 1, "4": 0.25}}],
    }
    page.keep("one", found, tmp_path)
    assert (tmp_path / "one.json").is_file()
    said = page.page([found])
    assert "| recurrent (LSTM) | 1,234 | 60 | 1.5 | 100% | 25% |" in said and "by chance 1 in 16" in said
    assert "a command" in said and "after 60 steps of training" in page.recall_picture(found)


def test_pictures_are_drawn_from_the_results(recall):
    page = sys.modules["page"]
    draw = {"recall": page.recall_picture, "table1": page.table1.svg}
    for kind, picture in draw.items():
        kept = [each for each in page.kept() if each.get("kind") == kind]
        file = ROOT / "docs" / f"{kind}.svg"
        assert file.is_file() == bool(kept)
        assert not kept or file.read_text() in map(picture, kept)
