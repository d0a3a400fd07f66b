"""The comparison with peers: their batches are what they are said to be, and the page is what was measured."""

import argparse
import importlib
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t import bench
from t2t.data.pipeline import pairs
from t2t.experiment import get, override
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


def test_the_peers_have_whole_batches_also_where_ours_are_computed_in_parts(peers, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "get", lambda name: override(toy, {"mesh.tokens_per_device": toy.batching.max_length}))
    named = dict(subject="toy", name="of_results", peers="python", flax="", engines="")
    options = argparse.Namespace(what="train", knobs=[], steps=2, rounds=1, threads=2, **named)
    asked = peers.training(tmp_path, options)
    work = json.loads((tmp_path / "work.json").read_text())
    assert bench.training_batches(asked.experiment, make_mesh(toy.mesh), lambda _: None)[0].target.tokens.ndim == 3
    whole = bench.training_batches(toy, make_mesh(toy.mesh), lambda _: None)
    assert work["padded"] == json.loads(json.dumps(peers.padded(whole, toy.batching.tokens, 2)))
    assert work["packed"] == peers.packed(whole, 2)


def test_the_order_of_the_peers_batches_is_the_one_that_pads_least(peers, toy, monkeypatch):
    """Long sources beside short targets: by the target's length alone nearly every source would be padded."""
    short = [([1] * length, [1] * length) for length in (2, 3, 4, 5) * 20]
    given = [*short, *(([1] * 20, [1] * target) for target in (2, 3, 4, 5))]
    counts = [
        peers._positions([peers._padded(batch) for batch in peers.in_batches(sorted(given, key=key), 40)])
        for key in (peers._by_target, peers._by_longer)
    ]
    assert counts[1] < counts[0]
    batches = bench.training_batches(toy, make_mesh(toy.mesh), lambda _: None)
    monkeypatch.setattr(peers, "MANY", 1)
    monkeypatch.setattr(peers, "in_batch", lambda batch: given)
    assert peers._positions(peers.padded(batches, 40, 10**6)) == counts[1]


@pytest.fixture(scope="module")
def accelerator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("accelerator")


def test_what_is_measured_on_an_accelerator_is_asked_for_in_knobs_that_there_are(accelerator, tmp_path):
    options = argparse.Namespace(folder=tmp_path, steps=3, peers="python", knobs={"batching.max_length": "32"})
    data = {f"task.corpus.{name}": tmp_path / name for name in ("train", "dev")}
    found = accelerator.measurements(options, data, fused=True)
    assert {"train_base", "train_big", "peers_base", "peers_big", "decode_base_1024"} <= set(found)
    assert "--model.attention fused" in " ".join(found["train_base"])
    assert "fused" not in str(accelerator.measurements(options, data, fused=False))
    for command in found.values():
        flags = {flag[2:]: value for flag, value in itertools.pairwise(command) if "." in flag and flag[:2] == "--"}
        experiment = override(get("own_base"), flags)
        assert experiment.batching.max_length == 32 and experiment.task.corpus.dev == str(tmp_path / "dev")
    assert "--model.d_ff 4096" in " ".join(found["peers_big"])
    assert "peers_base" not in accelerator.measurements(
        argparse.Namespace(**{**vars(options), "peers": ""}), data, fused=True
    )


def test_what_was_found_is_kept_whatever_comes_after(accelerator, tmp_path, monkeypatch):
    """One that answers, one that fails, and one whose child would hold its output open for an hour."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(3600)'])"
    scripts = {"one": "print('{\"speed\": 3}')", "bad": "raise SystemExit('no device')", "long": child}
    results = accelerator.Results(tmp_path)
    for name, script in scripts.items():
        until = time.monotonic() + (2 if name == "long" else 600)
        results.add(name, accelerator.measured(name, ["-c", script], tmp_path, until))
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: each["status"] for name, each in found.items()} == {
        "one": "0",
        "bad": "1",
        "long": "not done in time",
    }
    assert found["one"]["speed"] == 3 and found["bad"]["log"] == ["no device"]
    assert accelerator.Results(tmp_path).found == found
    with pytest.raises(SystemExit, match="train_base was not measured, of which the hours on 1 device"):
        accelerator.costs(found)


def test_hours_are_of_the_speeds_that_were_found(accelerator, monkeypatch):
    monkeypatch.setattr(accelerator, "STEPS", {"base": 1})
    found = {"train_base": (2e14, 700), "train_base_eighth": (1e14, None)}
    found = {name: {"flops_per_second": speed, "watts": watts} for name, (speed, watts) in found.items()}
    one, eight = accelerator.costs(found).values()
    assert one["hours"] == pytest.approx(one["train_flops"] / 2e14 / 3600) and one["kilowatt_hours"] > 0
    assert eight["hours"] == pytest.approx(one["hours"] / 4) and eight["devices"] == 8


def test_preflight_tells_a_kernel_that_is_wrong(accelerator, monkeypatch):
    found = accelerator.preflight(None)
    assert not found["fused"] and "and this is cpu" in found["why"]
    monkeypatch.setattr(accelerator.attention, "fused", lambda *given: accelerator.attention.attention(*given) * 1.0)
    found = accelerator.preflight(None)
    assert found["fused"] and found["difference"] < 1e-3
    monkeypatch.setattr(
        accelerator.attention, "fused", lambda q, k, v, mask: accelerator.attention.attention(q, k, v, mask) * jnp.nan
    )
    assert not accelerator.preflight(None)["fused"]


def test_training_on_an_accelerator_is_t2t_bench_train_with_power_and_memory(accelerator, toy, monkeypatch):
    monkeypatch.setattr(accelerator, "_experiment", lambda options: toy)
    monkeypatch.setattr(accelerator, "_nvidia", lambda what: {"power.draw": "650.5"}[what])
    monkeypatch.setitem(bench.WIDTH, "cpu", 128)
    run = bench.Trainer.run
    monkeypatch.setattr(bench.Trainer, "run", lambda self, steps: time.sleep(1) or run(self, steps))
    found = accelerator.train(argparse.Namespace(steps=2))
    assert found["watts"] == 650.5 and found["peak_bytes"] is None and found["steps"] == 2


def test_an_engine_answers_in_lines_of_json(peers, tmp_path, monkeypatch):
    script = tmp_path / "engine.py"
    script.write_text(
        "from contender import serve\n"
        "serve(lambda: print('noise') or {'tokens': 3}, lambda: {'rate': 2}, version='1')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    rounds = peers.measure({"one": [sys.executable, str(script)]}, 2)
    about, answers = next(rounds)["one"]
    assert about["version"] == "1" and about["first_seconds"] >= 0 and len(answers) == 1
    assert [(each["tokens"], each["rate"]) for each in next(rounds)["one"][1]] == [(3, 2), (3, 2)]
    assert next(rounds, None) is None


def test_a_peer_that_fails_is_left_out_and_ours_may_not(peers, tmp_path, monkeypatch, capsys):
    """One before its first answer, one in the second round."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    scripts = {
        peers.OURS: "from contender import serve\nserve(lambda: {'tokens': 3})",
        "one": "raise SystemExit(3)",
        "two": "print('{}', flush=True)\ninput()\nprint('{}', flush=True)\ninput()",
    }
    for number, text in enumerate(scripts.values()):
        (tmp_path / f"{number}.py").write_text(text)
    engines = {name: [sys.executable, str(tmp_path / f"{n}.py")] for n, name in enumerate(scripts)}
    found = [{name: len(answers) for name, (_, answers) in each.items()} for each in peers.measure(engines, 3)]
    assert found == [{peers.OURS: 1, "two": 1}, {peers.OURS: 2}, {peers.OURS: 3}]
    said = capsys.readouterr().err
    assert "one ended with 3; it is left out" in said and "two ended with 0; it is left out" in said
    with pytest.raises(SystemExit, match="t2t ended with 3"):
        next(peers.measure({peers.OURS: engines["one"]}, 1))


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
