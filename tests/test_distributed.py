"""Two processes of four devices each are one process of eight: on this machine, over the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import children
import jax
import numpy as np
import pytest
import toys
import trainer

from t2t import checkpoint, run
from t2t.data.pipeline import TrainingBatches
from t2t.data.prepare import Sizes, prepare
from t2t.sharding import MeshConfig, local_rows, make_mesh

TRAINER = Path(__file__).parent / "trainer.py"
LONG = ["--train_steps", "1000000", "--log_every", "5", "--evaluate_every", "1000000"]
PATIENCE = 600  # seconds until a process that does not end counts as hanging


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy's files."""
    folder = tmp_path_factory.mktemp("distributed")
    toys.reversal(folder)
    return folder


def start(folder, words, number, port, **more):
    """One of two processes that train the toy in `words`' run folder; what it says goes to a file."""
    others = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(number),
    }
    environment, words = toys.environment(folder, 4, **others, **more), [*words, "--distributed"]
    with open(said_in(folder, number), "w") as log:
        command = [sys.executable, str(TRAINER), str(folder), "train", "reversal", *map(str, words)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)


def alone_in(folder, *words, devices=8):
    """The same by one process that is no cluster, up to its end."""
    words = [str(folder), "train", "reversal", *map(str, words)]
    process = children.Child(trainer.trainer, words, folder, toys.environment(folder, devices))
    _, said = process.communicate(PATIENCE)
    assert process.returncode == 0, said


def said_in(folder, number):
    return folder / f"said-{number}"


def said(folder, number):
    return said_in(folder, number).read_text(errors="replace")


def two(folder, *words, first=None, second=None):
    """`first` and `second`: what the environment of each has more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(folder, words, number, port, **more) for number, more in enumerate((first or {}, second or {}))]


def codes(processes):
    return [process.wait(PATIENCE) for process in processes]


def until_a_step(folder, processes):
    """Waits for the first line of a step."""
    end = time.monotonic() + PATIENCE
    while "\nstep " not in said(folder, 0):
        assert time.monotonic() < end and processes[0].poll() is None, said(folder, 0)
        time.sleep(0.1)


def weights(where):
    found, experiment, _ = run.load(where)
    return checkpoint.load_params(found, experiment)[0]


def rows(where):
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timings} for row in run.read_metrics(run.Run(where))]


def assert_alike(ours, theirs):
    """What sums taken in another order leave of equality, over a dozen steps of Adam."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), weights(ours), weights(theirs))
    for our, their in zip(rows(ours), rows(theirs), strict=True):
        assert our.pop("split") == their.pop("split") and our == pytest.approx(their, rel=1e-3)


@pytest.fixture(scope="module")
def alone(folder):
    """The run of one process of eight devices."""
    alone_in(folder, "--mesh.data", 8, "--run", "alone")
    return folder / "alone"


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_two_processes_train_and_evaluate_as_one(mesh, folder, alone):
    where = folder / "-".join(map(str, ("two", *mesh)))
    axes = [word for axis, n in zip(("data", "fsdp", "model"), mesh, strict=True) for word in (f"--mesh.{axis}", n)]
    assert codes(two(folder, "--run", where.name, *axes)) == [0, 0], said(folder, 0) + said(folder, 1)
    assert_alike(where, alone)
    scores = [next((each / "evaluations").glob("*/")) for each in (where, alone)]
    assert (scores[0] / "hypotheses.txt").read_text() == (scores[1] / "hypotheses.txt").read_text()
    found = [json.loads((each / "scores.json").read_text()) for each in scores]
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-3)
    assert found[0]["scores"] == found[1]["scores"]
    assert "sacrebleu" in said(folder, 0)
    assert "sacrebleu" not in said(folder, 1) and "\nstep " not in said(folder, 1)  # the first alone speaks


def test_a_signal_to_one_stops_both_and_one_process_goes_on(folder):
    """Of two processes of four devices, then of one of a single device: the same batches, the same run."""
    processes = two(folder, "--run", "stopped", "--mesh.data", 8, *LONG)
    until_a_step(folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes) == [75, 75], said(folder, 0) + said(folder, 1)
    (step,) = checkpoint.all_steps(folder / "stopped" / "checkpoints")[-1:]
    more = ["--train_steps", step + 4, "--log_every", 4, "--evaluate_every", 1000000, "--final_evaluation", "none"]
    alone_in(folder, "--run", "stopped", "--mesh.data", 1, *more, devices=1)
    alone_in(folder, "--run", "whole", "--mesh.data", 8, *more)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), weights(folder / "stopped"), weights(folder / "whole")
    )


def test_checkpoints_by_the_clock_are_of_the_same_steps(folder):
    """Each process has its own clock, and none may save alone: that of one hardly moves, that of the other races."""
    words = ["--run", "clocks", "--mesh.data", 8, "--train_steps", 6, "--final_evaluation", "none"]
    processes = two(folder, *words, "--checkpoint_minutes", 10, first={"CLOCK": "1e-6"}, second={"CLOCK": "1e9"})
    assert codes(processes) == [0, 0], said(folder, 0) + said(folder, 1)
    # What one says after a step is known to both after the next.
    assert checkpoint.all_steps(folder / "clocks" / "checkpoints") == [2, 4, 6]


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_ends_the_other(number, folder):
    processes = two(folder, "--run", f"killed-{number}", "--mesh.data", 8, *LONG)
    until_a_step(folder, processes)
    processes[number].kill()
    assert processes[number].wait() == -signal.SIGKILL
    other = 1 - number
    assert processes[other].wait(60) in (75, -signal.SIGABRT)  # what jobs go on after; or it hangs
    assert "another" in said(folder, other), said(folder, other)


def test_a_mesh_that_leaves_out_a_process_is_refused(folder):
    assert codes(two(folder, "--run", "half", "--mesh.data", 4)) == [2, 2]
    for number in range(2):
        assert "leaves out some of the 8 devices of this run's processes" in said(folder, number)


def test_processes_that_were_not_started_alike_are_told(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--run", "unlike", "--mesh.data", 8]
    processes = [start(folder, [*words, "--train_steps", 3 + number], number, port) for number in range(2)]
    assert codes(processes) == [2, 2]
    for number in range(2):
        assert "have not the same experiment" in said(folder, number)


def test_one_process_that_must_stop_takes_the_others_along(folder):
    """The first finds the run folder taken; the second, which does not look, hears of it."""
    (folder / "taken").mkdir()
    (folder / "taken" / "letter").write_text("hello")
    assert codes(two(folder, "--run", "taken", "--mesh.data", 8)) == [2, 2]
    for number in range(2):
        assert "not empty and not a run folder" in said(folder, number)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, "the processes do not find one another"),
        ({"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is a whole number, not 'x'"),
    ],
)
def test_a_cluster_that_is_none_is_said(variables, complaint, folder):
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "t2t", "train", "quickstart", "--distributed", "--run", str(folder / "none")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert found.returncode == 2 and complaint in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


# ------------------------------------------------------------------------------ Which rows are whose


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 1, 8)])
@pytest.mark.parametrize(("parts", "rows"), [(1, 32), (3, 32), (2, 7)])
def test_one_process_has_all_rows(mesh, parts, rows):
    found = local_rows(make_mesh(mesh), parts, rows)
    assert found.shape[0] == parts
    assert found.ravel().tolist() == list(range(found.size)) and found.size >= rows
    assert found.shape[1] % (mesh.data * mesh.fsdp) == 0


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_are_the_batch_and_read_no_more(parts, processes, toy):
    """The rows of all processes together, put where they belong, are the whole batch."""

    class Counted:
        def __init__(self, tokens):
            self.tokens, self.read = tokens, 0

        def __getitem__(self, where):
            found = self.tokens[where]
            self.read += found.size
            return found

    prepared = prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)
    whole = TrainingBatches(prepared, toy.batching, toy.seed)
    rows = whole.epochs.buckets[0].rows
    every = np.arange(rows).reshape(parts, processes, -1)  # row by part, process, and place there
    made = [np.full((2, 3, rows, 16), -1) for _ in range(4)]
    for process in range(processes):
        share = whole.shared(lambda _, process=process: every[:, process])
        share._sides = [(Counted(tokens), *places) for tokens, *places in whole._sides]
        wanted = 0
        for step in range(4):
            batch = share[step]
            assert (
                batch.target.tokens.shape[:-1] == ((parts,) if parts > 1 else ()) + (rows // processes // parts,)[-1:]
            )
            made[step][:, :, every[:, process].ravel()] = np.array(batch).reshape(2, 3, -1, 16)
            wanted += sum(np.count_nonzero(side.segments) for side in batch)
        assert sum(side[0].read for side in share._sides) == wanted
    for step in range(4):
        np.testing.assert_array_equal(made[step], np.array(whole[step]))
