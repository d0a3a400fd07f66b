"""The comparison with peers: their batches are what they are said to be, and the page is what was measured."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t import bench
from t2t.data.pipeline import pairs
from t2t.models.dropout import Dropout
from t2t.sharding import make_mesh

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def peers():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")  # where its imports are found when it runs
        return importlib.import_module("peers")


def test_the_page_is_written_from_the_results(peers):
    page = sys.modules["page"]
    assert page.kept() and (ROOT / "BENCHMARKS.md").read_text() == peers.page(page.kept())


def test_the_batches_of_the_peers_are_our_pairs_under_the_same_budget(peers, toy):
    batches = bench.training_batches(toy, make_mesh(toy.mesh), lambda _: None)
    epoch = len(batches.epochs)
    tokens = toy.batching.tokens
    padded = peers.padded(batches, tokens, 10**6)
    ours = sorted(pair for step in range(epoch) for pair in pairs(batches[step]))
    theirs = []
    for source, target in padded:
        for side in (source, target):
            assert len({len(row) for row in side}) == 1 and sum(map(len, side)) <= tokens
        theirs += [([*filter(None, s)], [*filter(None, t)]) for s, t in zip(source, target, strict=True)]
    assert sorted(theirs) == ours and len(ours) == batches.epochs.pairs
    for batch, made in zip(peers.packed(batches, 3), map(batches.__getitem__, range(3)), strict=True):
        assert batch["targets"] == made.target.tokens.tolist()
        assert batch["inputs_segmentation"] == made.source.segments.tolist()


def test_an_engine_answers_in_lines_of_json(peers, tmp_path, monkeypatch):
    script = tmp_path / "engine.py"
    script.write_text(
        "from contender import serve\n"
        "serve(lambda: print('noise') or {'tokens': 3}, lambda: {'rate': 2}, version='1')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    about, answers = peers.measure({"one": [sys.executable, str(script)]}, 2)
    assert about["one"]["version"] == "1" and about["one"]["first_seconds"] >= 0
    assert [(each["tokens"], each["rate"]) for each in answers["one"]] == [(3, 2), (3, 2)]
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="two ended with 3"):
        peers.measure({"two": [sys.executable, str(tmp_path / "broken.py")]}, 1)


def test_engines_can_be_chosen(peers):
    engines = {name: [] for name in (peers.OURS, "PyTorch eager", "Joey NMT")}
    assert [*peers.chosen(engines, "")] == [*engines]
    assert [*peers.chosen(engines, "Joey NMT")] == [peers.OURS, "Joey NMT"]
    with pytest.raises(SystemExit, match="no 'Sockeye'; there are t2t, PyTorch eager, Joey NMT"):
        peers.chosen(engines, "Joey NMT,Sockeye")


def test_plain_ways_drop_by_random_bits_of_jax_and_only_they(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    curves = importlib.import_module("curves")
    layer, x, rngs = Dropout(0.25), jnp.ones((64, 64)), {"dropout": jax.random.key(3)}
    found = {}
    for way in curves.WAYS:
        with curves.dropout_of(way):
            found[way] = layer.apply({}, x, train=True, rngs=rngs)
    fast, plain, again = found.values()
    assert (fast == again).all() and (fast != plain).any()
    np.testing.assert_array_equal(layer.apply({}, x, train=True, rngs=rngs), fast)
    for each in (fast, plain):
        assert abs((each == 0).mean() - 0.25) < 0.03 and set(np.unique(each)) == {0, np.float32(4 / 3)}
