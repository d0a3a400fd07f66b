"""Measurements: that they are of what they say. No test asserts how long anything took."""

import json
from pathlib import Path

import jax
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


def test_spread():
    assert bench.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)
    assert bench.spread([7.0]) == (7.0, 7.0, 7.0)


def test_training_is_measured_as_the_parts_say(t2t, toy):
    code, out, said = t2t("bench", "train", "reversal", "--number", "12", "--json")
    assert code == 0, said
    found = json.loads(out)
    assert found["utilisation"] == pytest.approx(found["flops_per_second"] / found["matrix_rate"])
    assert found["experiment"] == "reversal" and found["shapes"] == 1 and found["steps"] == 12
    speed = found["tokens_per_second"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert 0 < found["padding"] < 1 and 0 <= found["wait"] < 1
    assert found["memory_per_device"] > 3 * 4 * cost.parameters(train.abstract_state(toy))


def test_flops_are_those_of_the_steps_that_were_taken(toy):
    """The batch of `t2t cost` is one of these shapes; half of its rows is half of all but the update of the weights."""
    rows, length = cost.abstract_batch(toy).target.tokens.shape
    whole, half = (bench._flops(toy, ((n, length), (n, length))) for n in (rows, rows // 2))
    assert whole == cost.cost(toy, None)["flops_per_step"]
    update = 2 * half - whole
    assert 0 < update < 20 * cost.parameters(train.abstract_state(toy))
    other = override(toy, {"model.attention": "blocked"})  # what a kernel computes twice is not counted twice
    assert bench._flops(other, ((rows, length), (rows, length))) == whole


def test_the_cache_of_compiled_programs_is_as_it_was():
    config, least = jax.config, jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    before = config.values["jax_compilation_cache_dir"]
    config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        with bench._kept_apart():
            folder = Path(config.values["jax_compilation_cache_dir"])
            assert str(folder) != before and not any(folder.iterdir())
            jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
            assert any(folder.iterdir())
    finally:
        config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert config.values["jax_compilation_cache_dir"] == before and not folder.exists()


def test_a_matrix_rate_is_of_all_devices():
    rates = [bench.matrix_rate(make_mesh(MeshConfig(data=n)), "float32") for n in (1, 2)]
    assert min(rates) > 0


def test_input(t2t):
    code, out, said = t2t("bench", "input", "reversal", "--number", "20", "--json")
    assert code == 0, said
    found = json.loads(out)
    assert found["batches_per_second"] > 0 and found["tokens_per_second"]["median"] > 0
    assert found["pairs"] > 0 and found["steps"] == 20


def test_decoding_with_random_weights_and_with_those_of_a_run(t2t, toy, tmp_path):
    code, out, said = t2t("bench", "decode", "reversal", "--number", "9", "--decoding.beam", "2")
    assert code == 0, said
    assert "random: every output goes on to its limit" in out and "sentences per second" in out
    train.train(override(toy, {"train_steps": 4}), tmp_path / "run", lambda _: None, lambda *_: None)
    how = ("--run", tmp_path / "run", "--model.dtype", "bfloat16", "--json")  # in another type than it was trained in
    code, out, said = t2t("bench", "decode", "reversal", "--number", "9", *how)
    assert code == 0, said
    found = json.loads(out)
    assert found["dtype"] == "bfloat16"
    assert found["weights"] == f"step 4 of {tmp_path / 'run'}" and found["sentences"] == 9 and found["beam"] == 4
    assert found["tokens_per_second"]["median"] >= found["sentences_per_second"]["median"]


def test_a_decoder_is_split_over_the_mesh_it_names_and_a_parser_is_constrained(t2t, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "registered", lambda: {"reversal": toy, "grammar": toys.grammar(tmp_path)})
    code, out, said = t2t("bench", "decode", "reversal", "--number", "4", "--mesh.data", "2", "--json")
    assert code == 0, said
    assert json.loads(out)["devices"] == "2 x cpu (cpu)"
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
