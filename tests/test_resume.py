"""Nothing is lost: killed at any moment, out of disk, damaged, twice at once; the same command goes on."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import children
import jax
import numpy as np
import pytest
import toys
import trainer

from t2t import checkpoint, memory, run, storage, train
from t2t.errors import UserError
from t2t.experiment import override

TRAINER = Path(__file__).parent / "trainer.py"
COMMAND = "{} train reversal --final_evaluation none"
KILLS = 20
OFTEN = ["--train_steps", "240", "--log_every", "3", "--evaluate_every", "40", "--checkpoint_every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy's files."""
    folder = tmp_path_factory.mktemp("resume")
    toys.reversal(folder)
    return folder


def start(folder, *words):
    """A process of one device that trains the toy; what it says comes by its standard error."""
    return children.Child(trainer.trainer, [*COMMAND.format(folder).split(), *words], folder, toys.environment(folder))


def start_by(shell, folder, *words):
    """The same by a script of bash."""
    command = ["bash", "-c", shell, "-", sys.executable, str(TRAINER), *COMMAND.format(folder).split(), *words]
    return subprocess.Popen(command, env=toys.environment(folder), stderr=subprocess.PIPE, text=True, cwd=folder)


def ended(process):
    """The exit code, and what was said."""
    _, err = process.communicate(timeout=600)
    return process.returncode, err


def weights(where):
    found, experiment, _ = run.load(where)
    return checkpoint.load_params(found, experiment, 2)[0]


def rows(where):
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timings} for row in run.read_metrics(run.Run(where))]


def assert_same(ours, theirs):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, weights(ours), weights(theirs))
    assert rows(ours) == rows(theirs)


# ------------------------------------------------------------------------------ Kills


def kill_at_a_random_moment(process, rng):
    """While it begins or compiles, or while it trains, saves, evaluates or ends. Whether it was still there."""
    begun, longest = (r": (a new run|going on)", 3) if rng.random() < 0.4 else (r"^step", 1)
    for line in process.stderr:
        if re.search(begun, line):
            break
    time.sleep(rng.uniform(0, longest))
    alive = process.returncode is None
    process.kill()
    process.wait()
    process.stderr.close()
    return alive


def test_killed_at_random_moments_a_run_is_the_uninterrupted_one(folder):
    code, said = ended(start(folder, *OFTEN, "--run", "whole"))
    assert code == 0, said
    rng, kills, gains, before = np.random.default_rng(0), 0, 0, 0
    while kills < KILLS or before == 0:
        kills += kill_at_a_random_moment(start(folder, *OFTEN, "--run", "killed"), rng)
        step = max(checkpoint.all_steps(folder / "killed" / "checkpoints"), default=0)
        gains += 0 < before < step
        before = step
        if step == 240:  # it was faster than the kills: another run
            shutil.rmtree(folder / "killed")
            before = 0
    assert gains > 2  # it got on in between
    code, said = ended(start(folder, *OFTEN, "--run", "killed"))
    assert code == 0, said
    assert_same(folder / "killed", folder / "whole")
    left = [path for path in (folder / "killed").rglob("*") if path.suffix == storage.UNFINISHED or "tmp" in path.name]
    assert left == []


def test_a_signal_is_waited_out_by_the_step_and_the_checkpoint(folder):
    process = start(folder, *OFTEN, "--train_steps", "100000", "--run", "signalled")
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 75 and "saved; the same command goes on from here" in said
    ((last, told),) = [(max(checkpoint.all_steps(folder / "signalled" / "checkpoints")), said)]
    assert f"stopped after step {last:,}" in told


# ------------------------------------------------------------------------------ Twice at once, no room


def test_a_run_in_use_is_refused(folder):
    first = start(folder, *OFTEN, "--train_steps", "100000", "--run", "used")
    for line in first.stderr:
        if line.startswith("step"):
            break
    code, said = ended(start(folder, *OFTEN, "--run", "used"))
    assert code == 2 and f"used is in use by process {first.pid} on" in said.splitlines()[-1]
    first.kill()
    assert ended(first)[0] == -signal.SIGKILL
    last = max(checkpoint.all_steps(folder / "used" / "checkpoints"))
    code, said = ended(start(folder, *OFTEN, "--train_steps", str(last + 1), "--run", "used"))
    assert code == 0, said  # what is killed holds nothing


def test_a_disk_without_room_is_said_and_the_last_checkpoint_is_kept(folder):
    words = ["--train_steps", "6", "--log_every", "3", "--checkpoint_every", "3", "--run", "full"]
    assert ended(start(folder, *words))[0] == 0
    before = weights(folder / "full")
    words[1] = "12"
    # No file may grow beyond 16 KiB: a checkpoint does, the log does not.
    code, said = ended(start_by("trap '' XFSZ; ulimit -f 16; exec \"$@\"", folder, *words))
    assert code == 2, said
    assert "full/checkpoints: cannot write a checkpoint; those before it are kept" in said
    assert checkpoint.all_steps(folder / "full" / "checkpoints") == [3, 6]
    jax.tree.map(np.testing.assert_array_equal, before, weights(folder / "full"))
    assert ended(start(folder, *words))[0] == 0
    assert checkpoint.all_steps(folder / "full" / "checkpoints")[-1] == 12


def test_a_disk_with_too_little_room_is_said_before_anything_is_written(toy, tmp_path, monkeypatch):
    quietly(toy, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"cannot write a checkpoint to .*: it takes [\d,]+ bytes, 1,000 are free"):
            quietly(toy, tmp_path / "run")
    assert checkpoint.all_steps(tmp_path / "run" / "checkpoints") == [5, 10]
    quietly(toy, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


# ------------------------------------------------------------------------------ Damage


def quietly(experiment, where, **config):
    said = []
    train.train(experiment, where, said.append, lambda *_: None, train.TrainingConfig(**config))
    return said


def damage(where, step):
    for file in (where / "checkpoints" / str(step)).rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:100])


def test_a_damaged_checkpoint_is_named_and_another_is_used_only_when_asked_for(toy, tmp_path):
    where = tmp_path / "run"
    quietly(toy, tmp_path / "whole")
    quietly(override(toy, {"train_steps": 10}), where)
    damage(where, 10)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/10.*--from-step 5"):
            quietly(toy, where)
    with pytest.raises(UserError, match=r"--from-step 7: .* has no checkpoint of that step; there is 5, 10"):
        quietly(toy, where, from_step=7)
    said = quietly(toy, where, from_step=5)
    assert any("later checkpoints (10) now lie in" in line for line in said)
    assert [path.name for path in (where / "set_aside").iterdir()] == ["10"]
    assert_same(where, tmp_path / "whole")


def test_one_array_that_is_broken_is_said_in_one_line(toy, tmp_path, t2t):
    """Of all files of a checkpoint the one with most in it, cut off."""
    quietly(override(toy, {"train_steps": 10}), tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "10" / "params" / "ocdbt.process_0" / "d").iterdir()
    max(files, key=lambda file: file.stat().st_size).write_bytes(b"")
    code, _, said = t2t("evaluate", tmp_path / "run")
    assert code == 2 and "cannot read the checkpoint" in said and said.count("\n") == 1
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*/checkpoints/10.*--from-step 5"):
        quietly(toy, tmp_path / "run")


def test_a_command_of_another_interval_removes_no_checkpoint_that_counts(toy, tmp_path):
    """Neither where there is nothing left to do, nor where training goes on."""
    where = run.Run(tmp_path / "run")
    quietly(override(toy, {"train_steps": 8, "checkpoint_every": 2}), where.folder)
    other = override(toy, {"train_steps": 8, "checkpoint_every": 1000})
    quietly(other, where.folder)
    assert checkpoint.all_steps(where.checkpoints) == [2, 4, 6, 8]
    quietly(override(other, {"train_steps": 9}), where.folder)
    assert checkpoint.all_steps(where.checkpoints) == [4, 6, 8, 9]  # the last four
    assert checkpoint.steps(where, other) == [4, 6, 9]  # a part ended with 8
    said = quietly(override(other, {"train_steps": 10}), where.folder)
    assert any("removed checkpoint 8, with which an earlier part" in line for line in said)
    assert checkpoint.all_steps(where.checkpoints) == [4, 6, 9, 10]


def test_checkpoints_by_minutes_count_when_the_minutes_are_left_out(toy, tmp_path):
    where = run.Run(tmp_path / "run")
    quietly(override(toy, {"train_steps": 4, "checkpoint_minutes": 1e-9}), where.folder)
    other = override(toy, {"train_steps": 6, "checkpoint_every": 1000})
    quietly(other, where.folder)
    assert checkpoint.all_steps(where.checkpoints) == [2, 3, 4, 6]
    assert checkpoint.steps(where, other) == [2, 3, 6]


def test_setting_aside_twice_loses_nothing(toy, tmp_path):
    quietly(override(toy, {"train_steps": 10}), tmp_path / "run")
    for _ in range(2):
        quietly(override(toy, {"train_steps": 10}), tmp_path / "run", from_step=5)
    assert sorted(path.name for path in (tmp_path / "run" / "set_aside").iterdir()) == ["10", "10.1"]


def test_evaluations_of_weights_set_aside_are_no_more_the_newest(toy, tmp_path):
    where = tmp_path / "run"
    quietly(override(toy, {"train_steps": 10}), where)
    for step in (5, 10):
        scores = {"split": "dev", "decoding": None, "checkpoints": [step]}
        run.write_evaluation(run.Run(where), f"dev-step{step}", {}, scores)
    said = quietly(override(toy, {"train_steps": 6}), where, from_step=5)
    assert any("(10), and 1 evaluation(s) of such now lie in" in line for line in said)
    assert [each.folder.name for each in run.evaluations(run.Run(where), "dev")] == ["dev-step5"]
    assert (where / "set_aside" / "evaluations" / "dev-step10" / "scores.json").is_file()


def test_stopped_after_from_step_it_says_how_to_go_on(toy, tmp_path):
    """The same words would set aside what was gained."""
    quietly(override(toy, {"train_steps": 10}), tmp_path / "run")

    def interrupt(step, *_):
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(train.Stopped, match="the same command, without --from-step, goes on from here"):
        train.train(toy, tmp_path / "run", lambda _: None, interrupt, train.TrainingConfig(from_step=5))


def test_checkpoints_of_many_stops_do_not_take_the_place_of_those_that_are_averaged(toy, tmp_path):
    for end in (11, 12, 13, 14):
        quietly(override(toy, {"train_steps": end}), tmp_path / "run")
    assert checkpoint.steps(run.Run(tmp_path / "run"), toy) == [5, 10, 14]


def test_a_loss_on_dev_that_is_not_finite_is_said(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "perplexity", lambda *_: {"loss": float("nan"), "perplexity": float("nan")})
    with pytest.raises(UserError, match="the loss on dev is not finite at step 6; the checkpoints before"):
        quietly(toy, tmp_path / "run")
    assert checkpoint.all_steps(tmp_path / "run" / "checkpoints") == [5]
    assert [row["split"] for row in rows(tmp_path / "run")] == ["train"]


def test_a_checkpoint_holds_all_that_going_on_needs(toy, tmp_path):
    quietly(override(toy, {"train_steps": 3}), tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "checkpoints" / "3" / "position" / "metadata").read_text())
    assert kept == {"data": {"next_index": 3}, "sums": {}}  # a line was logged at the end
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints" / "3").iterdir() if p.is_dir()) == [
        "optimizer",
        "params",
        "position",
    ]


def test_the_batch_that_breaks_a_run_is_written(toy, tmp_path, monkeypatch):
    """The seventh: its gradient is made infinite, as by a product out of range."""
    gradient = train._gradient

    def break_at(step):
        def broken(experiment, state, batch):
            found, sums = gradient(experiment, state, batch)
            return jax.tree.map(lambda x: jax.numpy.where(state.step + 1 == step, jax.numpy.inf, x), found), sums

        monkeypatch.setattr(train, "_gradient", broken)

    break_at(7)
    where = tmp_path / "run"
    with pytest.raises(UserError, match=r"not finite at step 7: its batch is in .*not_finite_step7.json"):
        quietly(toy, where)
    written = json.loads((where / "not_finite_step7.json").read_text())
    assert written["step"] == 7 and len(written["pairs"]) > 32
    for source, target in written["pairs"]:
        assert source.split() == target.split()[::-1]
    assert checkpoint.all_steps(where / "checkpoints") == [5]
    assert [row["step"] for row in rows(where)] == [4, 6]
    break_at(1000)
    quietly(toy, where)
    quietly(toy, tmp_path / "whole")
    assert_same(where, tmp_path / "whole")


# ------------------------------------------------------------------------------ Memory


def test_what_does_not_fit_is_said_before_the_first_step(toy, tmp_path, monkeypatch):
    """A device of less memory than a step of this batch needs, and of more than one of a fourth of it."""
    sizes = {}
    needed = memory.needed

    def note(step):
        return sizes.setdefault(id(step), needed(step))

    monkeypatch.setattr(memory, "needed", note)
    quietly(toy, tmp_path / "whole")
    (whole,) = sizes.values()
    monkeypatch.setattr(memory, "room", lambda mesh: int(0.6 * whole))
    with pytest.raises(
        UserError, match=r"needs .* GiB on each device, which has .*: --mesh.tokens_per_device \d+ needs"
    ):
        quietly(toy, tmp_path / "parts")
    assert not (tmp_path / "parts" / "experiment.json").exists()
    said = quietly(toy, tmp_path / "parts", auto_accumulate=True)
    assert any("going on with --mesh.tokens_per_device" in line for line in said)
    (_, experiment, _) = run.load(tmp_path / "parts")
    assert experiment.mesh.tokens_per_device < 512
    for a, b in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        assert a.pop("split") == b.pop("split") and a == pytest.approx(b, rel=1e-3)
    monkeypatch.setattr(memory, "room", lambda mesh: 1000)
    with pytest.raises(UserError, match=r"too much in any number of parts; parameters and optimizer state are"):
        quietly(toy, tmp_path / "never")


def test_a_cpu_has_a_part_of_the_machine_s_memory():
    one, eight = (memory.room(train.make_mesh(train.Experiment.mesh.__class__(data=n))) for n in (1, 8))
    assert one // 8 == eight > 2**27
