"""Measurements: that they are of what they say. No test asserts how long anything took."""

import functools
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys

from t2t import bench, cost, experiment, train
from t2t.experiment import override
from t2t.sharding import MeshConfig, make_mesh


@pytest.fixture(autouse=True)
def registered(toy, monkeypatch):
    known = {**experiment.registered(), "reversal": toy}
    monkeypatch.setattr(experiment, "registered", lambda: known)
    monkeypatch.setitem(bench.WIDTH, "cpu", 128)


@pytest.fixture
def takes(monkeypatch):
    """Bench's clock rests, but for 3 s a batch and the seconds that a test gives to calls, the last to all after."""
    now, read_ahead = [0.0], bench.read_ahead

    def after(seconds, value):
        now[0] += seconds
        return value

    def takes(name, *seconds):
        function, left = getattr(bench, name), itertools.chain(seconds, itertools.repeat(seconds[-1]))
        monkeypatch.setattr(bench, name, lambda *given, **how: after(next(left), function(*given, **how)))

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(bench, "read_ahead", lambda *given: map(functools.partial(after, 3), read_ahead(*given)))
    return takes


def speeds(tokens, seconds):
    """Of steps of so many seconds each, timed in ten groups."""
    groups = np.array_split(tokens, 10)
    return bench.spread([float(group.sum()) / (seconds * len(group)) for group in groups])._asdict()


def test_spread():
    assert bench.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)
    assert bench.spread([7.0]) == (7.0, 7.0, 7.0)


def test_training_is_measured_as_the_parts_say(t2t, toy, takes, monkeypatch):
    """Twelve steps of four seconds, of which three are waiting, after ones that are not counted."""
    takes("compiled_steps", 50, 5)
    takes("place", 1)
    monkeypatch.setattr(bench, "matrix_rate", lambda mesh, dtype: {(1, "float32"): 1e6}[mesh.size, dtype])
    code, out, said = t2t("bench", "train", "reversal", "--number", "12", "--json")
    assert code == 0, said
    found = json.loads(out)
    mesh = make_mesh(toy.mesh)
    batches = bench.training_batches(toy, mesh, lambda _: None)
    targets = [batches[step].target for step in range(12)]
    tokens = [int((target.segments != 0).sum()) for target in targets]
    flops = bench._flops(toy, tuple(side.tokens.shape for side in batches[0]))
    assert 0 < found.pop("loss") < 2 * math.log(toy.model.vocab_size)
    assert found.pop("memory_per_device") > 3 * 4 * cost.parameters(toy)
    assert found == {
        "what": "train",
        "experiment": "reversal",
        "devices": "1 x cpu (cpu)",
        "dtype": "float32",
        "steps": 12,
        "tokens_per_second": speeds(tokens, 4),
        "seconds_per_step": {"median": 4, "low": 4, "high": 4},
        "flops_per_second": flops / 4,
        "matrix_rate": 1e6,
        "utilisation": flops / 4 / 1e6,
        "compile_seconds": 50,
        "compile_again_seconds": 5,
        "shapes": 1,
        "padding": 1 - sum(tokens) / sum(target.tokens.size for target in targets),
        "wait": 3 / 4,
    }


def test_flops_are_those_of_the_steps_that_were_taken(toy):
    """The batch of `t2t cost` is one of these shapes; half of its rows is half of all but the update of the weights."""
    rows, length = cost.abstract_batch(toy).target.tokens.shape
    whole, half = (bench._flops(toy, ((n, length), (n, length))) for n in (rows, rows // 2))
    assert whole == cost.cost(toy, None)["flops_per_step"]
    update = 2 * half - whole
    assert 0 < update < 20 * cost.parameters(toy)
    other = override(toy, {"model.attention": "blocked"})  # what a kernel computes twice is not counted twice
    assert bench._flops(other, ((rows, length), (rows, length))) == whole


def test_a_loss_that_is_not_finite_is_no_speed(t2t, monkeypatch):
    run = bench.Trainer.run
    monkeypatch.setattr(bench.Trainer, "run", lambda self, steps: {**run(self, steps), "loss": math.nan})
    code, out, said = t2t("bench", "train", "reversal", "--number", "1")
    assert (code, out) == (2, "") and said.endswith("the loss of these steps is nan: their speed means nothing\n")


def test_programs_are_compiled_from_nothing_and_then_kept_with_the_others():
    config, least = jax.config, jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    before = config.values["jax_compilation_cache_dir"]
    config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        with bench._kept_apart():
            folder = Path(config.values["jax_compilation_cache_dir"])
            assert str(folder) != before and not any(folder.iterdir())
            jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
            made = {path.name for path in folder.iterdir()}
            assert made and not made & {path.name for path in Path(before).iterdir()}
        assert made <= {path.name for path in Path(before).iterdir()}
    finally:
        config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert config.values["jax_compilation_cache_dir"] == before and not folder.exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_matrix_rate_is_of_all_devices(devices, monkeypatch):
    """Two FLOPs for each of n^3 products of numbers, on every device, in the best of the times."""
    shapes, times = set(), itertools.cycle([4.0, 2.0, 3.0])
    monkeypatch.setattr(bench, "_timed", lambda work: shapes.add(work().shape) or next(times))
    rate = bench.matrix_rate(make_mesh(MeshConfig(data=devices)), "float32")
    assert rate == devices * 8 * 2 * 128**3 / 2.0
    assert shapes == {(devices, 128, 128)}


def test_input(t2t, toy, takes):
    """The first batch of 21 is not among those that are counted."""
    code, out, said = t2t("bench", "input", "reversal", "--number", "20", "--json")
    assert code == 0, said
    found = json.loads(out)
    batches = bench.training_batches(toy, make_mesh(toy.mesh), lambda _: None)
    tokens = [int((batches[step].target.segments != 0).sum()) for step in range(1, 21)]
    assert found["tokens_per_second"] == speeds(tokens, 3)
    assert (found["first_seconds"], found["batches_per_second"]) == (3, 1 / 3)
    assert found["pairs"] == batches.epochs.pairs and found["steps"] == 20


def test_decoding_with_the_weights_of_a_run(t2t, toy, takes, tmp_path, monkeypatch):
    """The first time takes a minute, five more 4 s each."""
    outputs, decode = [], bench.decode
    monkeypatch.setattr(bench, "decode", lambda *given, **how: outputs.extend(decode(*given, **how)) or outputs[-9:])
    takes("decode", 60, 4)
    train.train(override(toy, {"train_steps": 4}), tmp_path / "run", lambda _: None, lambda *_: None)
    how = ("--run", tmp_path / "run", "--model.dtype", "bfloat16", "--json")  # in another type than it was trained in
    code, out, said = t2t("bench", "decode", "reversal", "--number", "9", *how)
    assert code == 0, said
    found = json.loads(out)
    assert found["dtype"] == "bfloat16"
    assert found["weights"] == f"step 4 of {tmp_path / 'run'}" and found["sentences"] == 9 and found["beam"] == 4
    assert len(outputs) == 6 * 9 and found["first_seconds"] == 60
    tokens = sum(len(best[0].tokens) + 1 for _, best in outputs[:9])
    assert found["sentences_per_second"] == bench.spread([9 / 4])._asdict()
    assert found["tokens_per_second"] == bench.spread([tokens / 4])._asdict()


def test_a_decoder_is_split_over_the_mesh_it_names_and_a_parser_is_constrained(t2t, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "registered", lambda: {"reversal": toy, "grammar": toys.grammar(tmp_path)})
    code, out, said = t2t("bench", "decode", "reversal", "--number", "4", "--mesh.data", "2", "--decoding.beam", "2")
    assert code == 0, said
    assert re.search(r"^devices +2 x cpu \(cpu\)$", out, re.M) and "sentences per second" in out
    assert "random: every output goes on to its limit" in out
    constraints = []
    decode = bench.decode
    monkeypatch.setattr(bench, "decode", lambda *a, **how: constraints.append(how["constraint"]) or decode(*a, **how))
    code, out, said = t2t("bench", "decode", "grammar", "--number", "3", "--json")
    assert code == 0, said
    assert all(each.max_openings > 0 and len(each.sentences) == 3 for each in constraints) and constraints


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("bench train reversal --run x", "--run gives the weights of `t2t bench decode`; train needs none"),
        ("bench train reversal --mesh.data 1 --mesh.model 8", "--mesh.model 8 does not divide an axis of 4"),
        ("bench decode lm_quickstart", "lm_quickstart has no sources to decode"),
        ("bench train reversal --number 0", "number is a whole number, at least 1, not 0"),
        ("bench train reversl", "did you mean reversal"),
        ("bench trian reversal", "invalid choice: 'trian'"),
        ("bench decode quickstart --run {run}", "its model is not that of quickstart"),
    ],
)
def test_mistakes(t2t, toy, tmp_path, words, complaint):
    if "{run}" in words:
        train.train(override(toy, {"train_steps": 1}), tmp_path / "run", lambda _: None, lambda *_: None)
    code, out, said = t2t(*words.format(run=tmp_path / "run").split())
    assert (code, out) == (2, "") and complaint in said, said
