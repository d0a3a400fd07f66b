"""Runs in a bucket: a server on this machine speaks the protocol of Google Cloud Storage."""

import importlib.util
import json
import os
import re
import signal

import buckets
import children
import jax
import numpy as np
import pytest
import toys
import trainer
from aiohttp import ClientError
from gcsfs.retry import HttpError

from t2t import checkpoint, experiment, run, storage, train
from t2t.errors import UserError
from t2t.experiment import override

WORDS = ["--train_steps", "90", "--checkpoint_every", "30", "--evaluate_every", "45", "--final_evaluation", "none"]


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket."""
    with buckets.serving() as address:
        yield address


@pytest.fixture
def registered(toy, monkeypatch):
    known = {**experiment.registered(), "reversal": toy}
    monkeypatch.setattr(experiment, "registered", lambda: known)


def weights(folder):
    found, tree, _ = run.load(storage.folder(str(folder)))
    return checkpoint.load_params(found, tree, 2)


def rows(folder):
    timings = {"seconds", "tokens_per_second"}
    found = run.read_metrics(run.Run(storage.folder(str(folder))))
    return [{k: v for k, v in row.items() if k not in timings} for row in found]


def start(folder, *words):
    return children.Child(trainer.trainer, [str(folder), *words], folder, toys.environment(folder))


# ------------------------------------------------------------------------------ Runs


@pytest.fixture(scope="module")
def runs(bucket, toy, tmp_path_factory):
    """The same run on a disk and in a bucket."""
    tree = override(toy, {"train_steps": 24, "checkpoint_every": 12, "evaluate_every": 8})
    both = tmp_path_factory.mktemp("runs") / "run", storage.folder(f"{bucket}/runs/a run")
    for folder in both:
        train.train(tree, folder, lambda _: None, lambda *_: None)
    return both


def test_a_run_in_a_bucket_is_the_run_on_a_disk(runs):
    here, there = runs
    ours, steps = weights(there)
    assert steps == weights(here)[1] == [12, 24]
    jax.tree.map(np.testing.assert_array_equal, ours, weights(here)[0])
    assert rows(there) == rows(here) and len(rows(here)) == 9
    found = {path.name for path in storage.content(there)}
    assert {path.name for path in here.iterdir()} == {*found, "lock"}
    (board,) = storage.content(there / "tensorboard")
    assert len(board.read_bytes()) == sum(path.stat().st_size for path in (here / "tensorboard").iterdir()) > 0


def test_every_verb_reads_it(runs, bucket, t2t, registered):
    there = str(runs[1])
    code, out, said = t2t("evaluate", there, "--split", "test", "--json")
    assert code == 0, said
    scores = f"{json.loads(out)['folder']}/scores.json"
    assert json.loads(storage.read(storage.folder(scores)))["scores"] == json.loads(out)["scores"]
    assert t2t("evaluate", there, "--split", "test", "--beam", "1")[0] == 0
    assert t2t("compare", there, there)[0] == 0
    code, _, said = t2t("evaluate", there, there, "--beam", "1", "--out", f"{bucket}/both")
    assert code == 0, said
    assert t2t("compare", there, f"{bucket}/both")[0] == 0
    code, _, said = t2t("evaluate", there, there, "--out", f"{bucket}/both")
    assert code == 2 and f"{bucket}/both exists: choose another folder with --out" in said
    assert t2t("average", there, "--average", "2") == (0, f"{there}-average2\n", "")
    code, _, said = t2t("average", there, "--average", "2")
    assert code == 2 and f"{there}-average2 exists: choose another folder with --to" in said
    words = " ".join(toys.WORDS[:3]).encode()
    plain = t2t("translate", there, "--average", "2", stdin=words)
    assert plain == t2t("translate", f"{there}-average2", stdin=words) and plain[0] == 0
    code, _, said = t2t("report", "table2", "--runs", f"{bucket}/runs")
    assert code == 0 and "left out" not in said


def test_an_earlier_checkpoint_is_gone_on_from(runs, t2t, registered):
    there = str(runs[1])
    words = ["train", "reversal", "--evaluate_every", "8", "--final_evaluation", "none", "--run", there]
    words += ["--train_steps", "24", "--checkpoint_every", "12"]
    code, _, said = t2t(*words, "--seed", "9")
    assert code == 2 and f"{there} holds another experiment: seed is 0 there, 9 here" in said
    code, _, said = t2t(*words, "--from-step", "12")
    assert code == 0 and "later checkpoints (24)" in said and f" now lie in {there}/set_aside;" in said
    assert "24" in [path.name for path in storage.content(runs[1] / "set_aside")]
    assert checkpoint.all_steps(runs[1] / "checkpoints") == [12, 24]
    jax.tree.map(np.testing.assert_array_equal, weights(there)[0], weights(runs[0])[0])


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (lambda: HttpError({"code": 503, "message": "try later"}), True),
        (lambda: ClientError("connection closed"), True),
        (TimeoutError, True),
        (lambda: ValueError("UNAVAILABLE: Error writing gs://bucket/x"), True),
        (lambda: HttpError({"code": 400, "message": "what"}), False),
        (lambda: OSError("Forbidden: bucket/x"), False),
        (lambda: FileNotFoundError("bucket/x"), False),
        (lambda: ValueError("NOT_FOUND: gs://bucket/x"), False),
    ],
)
def test_a_bucket_that_cannot_be_reached_for_now_is_another_exit_code(error, passing, bucket, t2t, monkeypatch):
    """A job that repeats 75 goes on then; after 2 it would be given up."""
    monkeypatch.setattr(run, "load", lambda _: (_ for _ in ()).throw(storage.failed("cannot read", error())))
    code, _, said = t2t("evaluate", f"{bucket}/somewhere")
    assert code == (75 if passing else 2) and said.startswith("t2t: cannot read: ") and said.count("\n") == 1


def test_killed_and_stopped_it_goes_on(bucket, tmp_path):
    toys.reversal(tmp_path)
    words = ["train", "reversal", *WORDS]
    whole = start(tmp_path, *words, "--run", "whole")
    whole.communicate(timeout=600)
    assert whole.returncode == 0
    there = f"{bucket}/killed"
    for how in (signal.SIGKILL, signal.SIGTERM):
        process = start(tmp_path, *words, "--run", there)
        for line in process.stderr:
            if line.startswith("step"):
                break
        process.send_signal(how)
        said = process.communicate(timeout=600)[1]
        assert process.returncode == (75 if how == signal.SIGTERM else -signal.SIGKILL), said
    process = start(tmp_path, *words, "--run", there)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and "going on after step" in said, said
    jax.tree.map(np.testing.assert_array_equal, weights(there)[0], weights(tmp_path / "whole")[0])
    assert rows(there) == rows(tmp_path / "whole")


def test_a_checkpoint_that_is_not_whole_is_none(bucket, toy):
    folder = storage.folder(f"{bucket}/torn")
    checkpoint.save_params(folder, 3, {"w": np.zeros(2)})
    assert checkpoint.all_steps(folder) == [3]
    (marks,) = (path for path in storage.content(folder / "3") if path.name.startswith("commit"))
    marks.unlink()
    assert checkpoint.all_steps(folder) == []


# ------------------------------------------------------------------------------ Locks


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage, "RENEWED", 0.2)
    monkeypatch.setattr(storage, "ENDED", 3)


def test_one_process_holds_a_run(bucket, quick):
    lock = storage.folder(f"{bucket}/held/lock")
    with storage.held(lock):
        match = rf"{bucket}/held is in use by process {os.getpid()} on \S+: wait for it"
        with pytest.raises(UserError, match=match), storage.held(lock):
            pytest.fail("two hold it")
        assert lock.exists()
    assert not lock.exists()
    with storage.held(lock):
        pass


def test_the_lock_of_a_process_that_was_killed_ends(bucket, quick):
    lock = storage.folder(f"{bucket}/abandoned/lock")
    lock.write_text("process 1 on a machine\nsome time ago")
    with storage.held(lock):
        assert f"process {os.getpid()}" in lock.read_text()


# ------------------------------------------------------------------------------ Mistakes


def test_what_cannot_be_reached_is_said_in_a_line(bucket, t2t, registered):
    code, _, said = t2t("evaluate", f"{bucket}/nowhere", "--split", "test")
    assert code == 2 and f"{bucket}/nowhere is not a run folder: no experiment.json in it, and no such folder" in said
    code, _, said = t2t("train", "reversal", "--run", "gs://no-such-bucket/run")
    assert code == 2 and re.search(r"t2t: cannot write gs://no-such-bucket/run[^\n]*: [^\n]+\n$", said), said


def test_without_gcsfs_a_line_says_what_to_install(t2t, registered, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gcsfs" else find(name, *more))
    code, _, said = t2t("train", "reversal", "--run", "gs://bucket/run")
    assert code == 2 and said.endswith("reads and writes buckets with gcsfs: pip install 't2t[gcs]'\n")
