"""Training: it learns, it resumes exactly, and the layout over devices changes nothing."""

import functools
import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t import checkpoint, evaluate, run, train
from t2t.data.vocabulary import Vocabulary, count_words
from t2t.errors import UserError
from t2t.experiment import override
from t2t.sharding import make_mesh, on, place


def quietly(experiment, folder):
    said = []
    where = train.train(experiment, folder, said.append, lambda *_: None)
    return where, said


def weights(where, experiment):
    return checkpoint.load_params(where, experiment)[0]


def rows(where):
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timings} for row in run.read_metrics(where)]


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The run of the toy, trained without interruption."""
    return quietly(toy, tmp_path_factory.mktemp("whole") / "run")[0]


def copied(whole, folder):
    """The same run, to be changed."""
    return run.Run(shutil.copytree(whole.folder, folder))


def test_it_learns_to_reverse(toy, tmp_path):
    experiment = override(
        toy, {"train_steps": 400, "log_every": 100, "evaluate_every": 400, "checkpoint_every": 50, "batching.shapes": 2}
    )
    where, _ = quietly(experiment, tmp_path / "run")
    _, kept, vocabulary = run.load(where.folder)
    assert kept == experiment
    params, steps = checkpoint.load_params(where, experiment, 2)
    assert steps == [350, 400]
    found, translations = evaluate.evaluate(where, experiment, vocabulary, params, steps, "test", lambda _: None)
    assert found["perplexity"] < 1.3
    assert found["scores"]["sacrebleu"]["score"] > 80
    assert "tok:13a" in found["scores"]["sacrebleu"]["signature"]
    written = json.loads((Path(found["folder"]) / "scores.json").read_text())
    assert written["scores"] == found["scores"] and len(translations) == 32


def test_resumed_is_uninterrupted(toy, whole, tmp_path):
    parts = tmp_path / "parts"
    for steps in (3, 7, 12):  # none of them where a line is logged or a checkpoint is due
        where, said = quietly(override(toy, {"train_steps": steps}), parts)
        assert any("a new run" in line if steps == 3 else "going on after step" in line for line in said)
    assert [row["step"] for row in rows(whole)] == [4, 6, 8, 12, 12]
    extra = {3, 7}  # the ends of the parts are logged too
    jax.tree.map(np.testing.assert_array_equal, weights(whole, toy), weights(where, toy))
    means = [checkpoint.load_params(part, toy, 3) for part in (whole, where)]
    assert means[0][1] == means[1][1] == [5, 10, 12]  # not 3 or 7
    jax.tree.map(np.testing.assert_array_equal, means[0][0], means[1][0])
    assert [row for row in rows(where) if row["split"] == "dev" and row["step"] not in extra] == [
        row for row in rows(whole) if row["split"] == "dev"
    ]
    record = json.loads(where.record.read_text())
    assert [part["after_step"] for part in record["parts"]] == [0, 3, 7]


def test_a_signal_saves_and_the_same_command_goes_on(toy, whole, tmp_path):
    def interrupt(step, *_):
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(train.Stopped, match="stopped after step 8"):
        train.train(toy, tmp_path / "cut", lambda _: None, interrupt)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    where, _ = quietly(toy, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, weights(whole, toy), weights(where, toy))
    assert rows(where) == rows(whole)


def test_a_crash_leaves_metrics_that_are_cut_and_mended(toy, whole, tmp_path):
    def crash(step, *_):
        if step == 8:  # the last checkpoint is of step 5
            raise MemoryError

    with pytest.raises(MemoryError):
        train.train(toy, tmp_path / "cut", lambda _: None, crash)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "spl')
    where, _ = quietly(toy, tmp_path / "cut")
    assert rows(where) == rows(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(whole, toy), weights(where, toy))


def test_metrics_count_the_seconds_of_training(tmp_path, monkeypatch):
    """From one logged step to the next, and not those of a pause."""
    now, where = [0.0], run.Run(tmp_path)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with run.tensorboard(where, 0) as board:
        log = train.Log(where, board, {})

        def passes(step, seconds, tokens):
            now[0] += seconds
            sums = dict.fromkeys(("loss", "nll", "correct", "gradient_norm", "steps"), 1.0)
            log.add(step, {**sums, "tokens": tokens})

        passes(1, 2, 10)
        with log.pause():
            now[0] += 100
        log.close(1, 0.5)
        passes(2, 4, 6)
        with log.pause():
            log.total()
            now[0] += 50
        passes(3, 1, 9)
        log.close(3, 0.5)
    assert [(row["seconds"], row["tokens_per_second"], row["tokens"]) for row in run.read_metrics(where)] == [
        (2, 5, 10),
        (5, 3, 15),
    ]


def test_checkpoints_by_the_clock(toy, tmp_path, monkeypatch):
    """Every ten minutes, of a clock that runs four minutes a step; each counts for the average."""
    now = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    experiment = override(toy, {"checkpoint_minutes": 10, "train_steps": 12, "log_every": 12, "evaluate_every": 12})
    due, saved = train.Due(experiment), []
    for step in range(1, 12):
        now[0] += 240.0
        assert due.after(step) == (False, False, False)
        if due.by_minutes():
            due.saved()
            saved.append(step)
    assert saved == [3, 6, 9]  # after 12 minutes each
    assert due.after(12) == (True, True, True)
    monkeypatch.undo()
    where, _ = quietly(override(experiment, {"checkpoint_minutes": 1e-9}), tmp_path / "run")
    assert checkpoint.steps(where, experiment) == [9, 10, 11, 12]  # the average of two, and two more


def test_trained_enough_is_said_and_nothing_is_done(toy, whole, tmp_path):
    where = copied(whole, tmp_path / "run")
    _, said = quietly(toy, where.folder)
    assert said[-1].endswith("trained for 12 steps already")
    assert where.metrics.read_text() == whole.metrics.read_text()


def test_what_a_run_folder_refuses(toy, whole, tmp_path):
    where = copied(whole, tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.d_ff is 64 there, 96 here; use --run"):
        quietly(override(toy, {"model.d_ff": 96}), where.folder)
    with pytest.raises(UserError, match="not empty and not a run folder"):
        quietly(toy, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        quietly(toy, tmp_path / "file" / "run")
    with run.derive(where, tmp_path / "mean", [1]):
        assert not (tmp_path / "mean").exists()
    with pytest.raises(UserError, match="averaged weights only"):
        quietly(toy, tmp_path / "mean")
    with pytest.raises(UserError, match="exists"), run.derive(where, tmp_path / "mean", [1]):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mean", "run"]


def test_weights_refuse_another_vocabulary(toy, tmp_path):
    """One of the same size, under the same name."""
    words = [count_words([f"{pair.source} {extra}" for pair in toy.task.pairs("train")], Counter()) for extra in "xy"]
    file = tmp_path / "model"
    experiment = override(toy, {"task.vocabulary": str(file), "train_steps": 1})
    file.write_bytes(Vocabulary.train(words[0], toy.model.vocab_size).model)
    where, _ = quietly(experiment, tmp_path / "run")
    other = Vocabulary.train(words[1], toy.model.vocab_size).model
    file.write_bytes(other)
    with pytest.raises(UserError, match="trained with another vocabulary"):
        quietly(experiment, tmp_path / "run")
    (where.vocabulary / "shared.model").write_bytes(other)
    with pytest.raises(UserError, match="not the vocabulary this run was trained with"):
        run.load(where.folder)


def test_an_unreadable_checkpoint_is_named(toy, whole, tmp_path):
    where = copied(whole, tmp_path / "run")
    for file in (where.checkpoints / "12").rglob("*"):
        if file.is_file() and "ocdbt" not in file.name and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/12"):
        weights(where, toy)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/12"):
        quietly(toy, where.folder)


def test_the_average_is_the_plain_mean(toy, whole, tmp_path):
    (mean, steps), (last, _) = (checkpoint.load_params(whole, toy, n) for n in (2, 1))
    assert steps == [10, 12]
    shorter = copied(whole, tmp_path / "run")
    shutil.rmtree(shorter.checkpoints / "12")
    other = weights(shorter, toy)
    jax.tree.map(lambda m, a, b: np.testing.assert_allclose(m, (a + b) / 2, atol=1e-7), mean, last, other)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(other), strict=True))
    with pytest.raises(UserError, match="3 checkpoint"):
        checkpoint.load_params(whole, toy, 4)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    for steps in (1, 20):
        experiment = override(toy, {"optimizer.scale": 1e30, "train_steps": steps})
        with pytest.raises(UserError, match="not finite"):
            quietly(experiment, tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint"):
        weights(run.Run(tmp_path / "run"), toy)


def test_reading_leaves_a_checkpoint_alone_that_is_being_written(toy, whole, tmp_path):
    where = copied(whole, tmp_path / "run")
    unfinished = where.checkpoints / "13.orbax-checkpoint-tmp"
    unfinished.mkdir()
    weights(where, toy)
    assert unfinished.is_dir()


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    where = run.Run(tmp_path)
    where.metrics.write_text('{"step": 1}\n{"st\n{"step": 1}\n{"torn')
    with pytest.raises(UserError, match="line 2 is damaged"):
        run.read_metrics(where)


@pytest.fixture(scope="module")
def alone(toy):
    """On one device, of a model that eight can split: the first batch's gradient and sums, dropout included."""
    found, batch, said = first_gradient(override(toy, {"mesh.data": 1}))
    assert batch.target.tokens.ndim == 2 and "computed in 1 part(s) on 1 x cpu (cpu)" in said
    assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(found))
    return found


def first_gradient(experiment):
    """With the sums; the batch as the experiment's mesh has it; what training says of it."""
    experiment = override(experiment, {"model.num_heads": 8, "model.d_k": 4, "model.d_v": 4})
    mesh = make_mesh(experiment.mesh)
    prepared = train.prepare(experiment.task, train.Sizes(experiment.model.vocab_size), lambda _: None)
    share = train.share(experiment, mesh)
    batches = train.TrainingBatches(prepared, experiment.batching, experiment.seed, share)
    state = train.new_state(experiment, mesh)
    with on(mesh):
        found = jax.jit(functools.partial(train._gradient, experiment))(state, place(mesh, batches[0]))
    return found, batches[0], train._numbers(experiment, mesh, state, batches.epochs)


def assert_near(found, expected):
    """The tolerance is that of sums taken in another order."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize(("data", "fsdp", "model"), [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_devices_change_nothing(toy, alone, data, fsdp, model):
    found, _, said = first_gradient(override(toy, {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.model": model}))
    assert "on 8 x cpu (cpu)" in said
    assert_near(found, alone)


@pytest.mark.parametrize(("data", "tokens_per_device", "parts"), [(1, 64, 8), (2, 64, 4), (8, 16, 4)])
def test_parts_change_nothing(toy, alone, data, tokens_per_device, parts):
    """The step's batch is the same in however many parts devices compute it, its dropout included."""
    small = {"mesh.data": data, "mesh.tokens_per_device": tokens_per_device}
    found, batch, said = first_gradient(override(toy, small))
    assert len(batch.target.tokens) == parts and f"computed in {parts} part(s) on {data} x cpu (cpu)" in said
    assert_near(found, alone)


def test_the_step_is_pure(toy):
    """Traced twice: what a trace keeps, or draws, would be in the second."""
    state = train.new_state(toy, make_mesh(toy.mesh))
    prepared = train.prepare(toy.task, train.Sizes(toy.model.vocab_size), lambda _: None)
    batch = train.TrainingBatches(prepared, toy.batching, toy.seed)[0]
    steps = [jax.jit(functools.partial(train.train_step, toy)) for _ in range(2)]
    (first, sums), (second, again) = (step(state, batch) for step in steps)
    jax.tree.map(np.testing.assert_array_equal, (first, sums), (second, again))
    assert int(first.step) == 1
    assert jnp.isfinite(sums["loss"])
