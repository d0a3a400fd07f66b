"""Training: it learns, it resumes exactly, and the layout over devices changes nothing."""

import json
import signal
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t import checkpoint, evaluate, run, train
from t2t.data.vocabulary import Vocabulary, count_words
from t2t.decode import decode
from t2t.errors import UserError
from t2t.experiment import override
from t2t.sharding import unboxed


def quietly(experiment, folder):
    said = []
    where = train.train(experiment, folder, said.append, lambda *_: None)
    return where, said


def weights(where, experiment):
    return checkpoint.load_params(where, experiment)[0]


def rows(where):
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timings} for row in run.read_metrics(where)]


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


def test_resumed_is_uninterrupted(toy, tmp_path):
    whole, _ = quietly(toy, tmp_path / "whole")
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


def test_a_signal_saves_and_the_same_command_goes_on(toy, tmp_path):
    whole, _ = quietly(toy, tmp_path / "whole")

    def interrupt(step, *_):
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(train.Stopped, match="stopped after step 8"):
        train.train(toy, tmp_path / "cut", lambda _: None, interrupt)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    where, _ = quietly(toy, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, weights(whole, toy), weights(where, toy))
    assert rows(where) == rows(whole)


def test_a_crash_leaves_metrics_that_are_cut_and_mended(toy, tmp_path):
    whole, _ = quietly(toy, tmp_path / "whole")

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


def test_trained_enough_is_said_and_nothing_is_done(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 2}), tmp_path / "run")
    before = rows(where)
    _, said = quietly(override(toy, {"train_steps": 2}), tmp_path / "run")
    assert said[-1].endswith("trained for 2 steps already")
    assert rows(where) == before


def test_what_a_run_folder_refuses(toy, tmp_path):
    folder = tmp_path / "run"
    where, _ = quietly(override(toy, {"train_steps": 1}), folder)
    with pytest.raises(UserError, match=r"model\.d_ff is 64 there, 96 here; use --run"):
        quietly(override(toy, {"model.d_ff": 96}), folder)
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


def test_an_unreadable_checkpoint_is_named(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 1}), tmp_path / "run")
    for file in (where.checkpoints / "1").rglob("*"):
        if file.is_file() and "ocdbt" not in file.name and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/1"):
        weights(where, toy)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/1"):
        quietly(toy, tmp_path / "run")


def test_the_average_is_the_plain_mean(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 12}), tmp_path / "run")
    (mean, steps), (last, _) = (checkpoint.load_params(where, toy, n) for n in (2, 1))
    assert steps == [10, 12]
    other = weights(quietly(override(toy, {"train_steps": 10}), tmp_path / "ten")[0], toy)
    jax.tree.map(lambda m, a, b: np.testing.assert_allclose(m, (a + b) / 2, atol=1e-7), mean, last, other)
    with pytest.raises(UserError, match="3 checkpoint"):
        checkpoint.load_params(where, toy, 4)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    for steps in (1, 20):
        experiment = override(toy, {"optimizer.scale": 1e30, "train_steps": steps})
        with pytest.raises(UserError, match="not finite"):
            quietly(experiment, tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint"):
        weights(run.Run(tmp_path / "run"), toy)


def test_reading_leaves_a_checkpoint_alone_that_is_being_written(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 1}), tmp_path / "run")
    unfinished = where.checkpoints / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    weights(where, toy)
    assert unfinished.is_dir()


def test_a_damaged_line_of_metrics_is_named(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 1}), tmp_path / "run")
    where.metrics.write_text('{"step": 1}\n{"st\n{"step": 1}\n{"torn')
    with pytest.raises(UserError, match="line 2 is damaged"):
        run.read_metrics(where)


@pytest.mark.parametrize(("data", "fsdp", "model"), [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_devices_change_nothing(toy, data, fsdp, model, tmp_path):
    """Dropout is on. The tolerance is that of sums taken in another order, over three steps of Adam."""
    toy = override(toy, {"model.num_heads": 8, "model.d_k": 4, "model.d_v": 4})
    state = unboxed(train.init_state(toy, jax.random.key(toy.seed)))
    step = jax.jit(train.train_step, static_argnums=0)
    prepared = train.prepare(toy.task, train.Sizes(toy.model.vocab_size), lambda _: None)
    batches = train.TrainingBatches(prepared, toy.batching, toy.seed)
    for i in range(3):
        state, _ = step(toy, state, batches[i])
    spread = override(toy, {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.model": model, "train_steps": 3})
    where, _ = quietly(spread, tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), state.params, weights(where, toy))


@pytest.mark.parametrize(("data", "tokens_per_device", "parts"), [(1, 64, 8), (2, 64, 4), (8, 16, 4)])
def test_parts_change_nothing(toy, data, tokens_per_device, parts, tmp_path):
    """The step's batch is the same in however many parts devices compute it, its dropout included."""
    whole, said = quietly(override(toy, {"train_steps": 3}), tmp_path / "whole")
    assert any("computed in 1 part(s) on 1 device(s)" in line for line in said)
    small = {"mesh.data": data, "mesh.tokens_per_device": tokens_per_device, "train_steps": 3}
    where, said = quietly(override(toy, small), tmp_path / "parts")
    assert any(f"computed in {parts} part(s) on {data} device(s)" in line for line in said)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), weights(whole, toy), weights(where, toy))


def test_the_step_is_pure(toy):
    state = unboxed(train.init_state(toy, jax.random.key(0)))
    prepared = train.prepare(toy.task, train.Sizes(toy.model.vocab_size), lambda _: None)
    batch = train.TrainingBatches(prepared, toy.batching, toy.seed)[0]
    step = jax.jit(train.train_step, static_argnums=0)
    (first, sums), (second, again) = step(toy, state, batch), step(toy, state, batch)
    jax.tree.map(np.testing.assert_array_equal, (first, sums), (second, again))
    assert int(first.step) == 1
    assert jnp.isfinite(sums["loss"])


def test_decoding_reads_what_training_wrote(toy, tmp_path):
    where, _ = quietly(override(toy, {"train_steps": 1}), tmp_path / "run")
    sources = [[5, 6, 1]]
    ((index, best),) = decode(toy.model.build(), weights(where, toy), sources, toy.decoding)
    assert index == 0 and best and len(best[0].tokens) <= 3 + toy.decoding.extra_length
