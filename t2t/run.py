"""The run folder: what is written where.

Nothing else in t2t writes into it but Orbax its checkpoints and `t2t report` its page.

experiment.json   the resolved experiment, versions, commit, device, fingerprints of vocabulary and data
vocabulary/       the shared sentencepiece model, or that of sources and the tokens of targets
metrics.jsonl     one object a line: step, split, loss, tokens, ...
tensorboard/      the same for TensorBoard
checkpoints/      Orbax
evaluations/      a folder each: sources, hypotheses, references, scores with their signatures
report.html       its page, by `t2t report`
set_aside/        checkpoints that the user did not want to go on from, and evaluations of such
lock              held by the process that trains
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from t2t import distributed, storage
from t2t import experiment as experiments
from t2t.data.prepare import Prepared
from t2t.data.task import Task
from t2t.data.vocabulary import Vocabularies
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.storage import UNFINISHED

COPIED = 60  # seconds after which TensorBoard's files are copied to a bucket again
VERSIONS = (
    "t2t",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "sentencepiece",
    "sacrebleu",
    "sacremoses",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The paths of a run folder."""

    folder: Path

    @property
    def record(self) -> Path:
        """experiment.json"""
        return self.folder / "experiment.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl"""
        return self.folder / "metrics.jsonl"

    @property
    def vocabulary(self) -> Path:
        """The folder of the vocabularies."""
        return self.folder / "vocabulary"

    @property
    def checkpoints(self) -> Path:
        """Orbax's folder."""
        return self.folder / "checkpoints"

    @property
    def set_aside(self) -> Path:
        """Checkpoints that the user did not want to go on from, and evaluations of such."""
        return self.folder / "set_aside"

    @property
    def lock(self) -> Path:
        """lock"""
        return self.folder / "lock"


def write_json(path: Path, value: Any) -> None:
    """`storage.write` of an indented JSON value."""
    storage.write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------ Making and opening


@contextlib.contextmanager
def open_for_training(folder: Path, experiment: Experiment, prepared: Prepared) -> Iterator[Run]:
    """The run folder of `experiment`, to be begun or gone on with; inside, no other process can train in it.

    Nothing is written into it yet but the lock, which ends with the process however it ends.

    Raises:
        UserError: the folder holds something else, another experiment or other data, another process trains in it, or
            it cannot be made.
    """
    run = Run(folder)
    _refuse_another(run, experiment, prepared)
    with storage.held(run.lock):
        _refuse_another(run, experiment, prepared)  # what was there before may have been made since
        _remove_torn(run)
        yield run


def _remove_torn(run: Run) -> None:
    """Removes what processes left that ended while they wrote; none of them writes any more. A bucket has no such."""
    if storage.remote(run.folder):
        return
    for folder in (run.folder, run.vocabulary):
        for path in folder.glob(f"*{UNFINISHED}"):
            path.unlink()


def begin(run: Run, experiment: Experiment, prepared: Prepared, device: str, step: int) -> None:
    """Writes record and vocabulary: training goes on after `step`. Each part of a run adds how it was made."""
    record = _read_record(run) if run.record.is_file() else {"parts": []}
    record = {
        "experiment": experiments.to_json(experiment),
        "vocabulary": prepared.vocabulary.fingerprint,
        "data": {"fingerprint": prepared.fingerprint, **prepared.report},
        "parts": [*record["parts"], _part(device, step)],
    }
    write_json(run.record, record)
    for name, content in prepared.vocabulary.files().items():  # after the record: with it a folder can be opened again
        storage.write(run.vocabulary / name, content)


def _part(device: str, step: int) -> dict[str, Any]:
    """How what comes after `step` is made."""
    return {
        "after_step": step,
        "commit": commit(),
        "device": device,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }


def _refuse_another(run: Run, experiment: Experiment, prepared: Prepared) -> None:
    try:
        if not storage.remote(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in storage.content(run.folder) if path.suffix != UNFINISHED and path != run.lock]
        if run.checkpoints in there and not storage.content(run.checkpoints):  # of a run that did not get to begin
            there.remove(run.checkpoints)
    except storage.errors() as error:
        raise storage.failed(f"cannot write {run.folder}", error) from None
    if run.record in there:
        _refuse_record(run, experiment, prepared)
    elif there:
        raise UserError(f"{run.folder} is not empty and not a run folder: choose another with --run")


def _refuse_record(run: Run, experiment: Experiment, prepared: Prepared) -> None:
    record = _read_record(run)
    if record.get("averaged"):
        raise UserError(f"{run.folder} holds averaged weights only: it cannot be trained further")
    if record.get("imported"):
        raise UserError(f"{run.folder} holds imported weights: begin a run with them, --init_from {run.folder}")
    before = _experiment(run, record)
    changed = {
        path: values
        for path, values in experiments.differences(before, experiment).items()
        if path.split(".")[0] not in experiments.RESUMABLE
    }
    if changed:
        path, (there, here) = next(iter(changed.items()))
        more = f" ({len(changed)} knobs differ)" if len(changed) > 1 else ""
        raise UserError(f"{run.folder} holds another experiment: {path} is {there} there, {here} here{more}; use --run")
    if record["vocabulary"] != prepared.vocabulary.fingerprint:
        raise UserError(f"{run.folder} was trained with another vocabulary: its weights mean nothing under this one")
    if record["data"]["fingerprint"] != prepared.fingerprint:
        raise UserError(
            f"{run.folder} was trained on other data, or on data prepared by another version of t2t; use --run"
        )


def _read_record(run: Run) -> dict[str, Any]:
    try:
        record = json.loads(run.record.read_bytes())
    except FileNotFoundError:
        there = "" if run.folder.is_dir() else ", and no such folder"
        raise UserError(f"{run.folder} is not a run folder: no experiment.json in it{there}") from None
    except storage.errors() as error:
        raise storage.failed(f"{run.folder} is not a run folder: {run.record}", error) from None
    except ValueError as error:
        raise UserError(f"{run.record} is damaged: {error}") from None
    if not isinstance(record, dict) or not {"experiment", "vocabulary", "data", "parts"} <= record.keys():
        raise UserError(f"{run.record} is damaged: it is not the record of a run")
    return record


def _experiment(run: Run, record: dict[str, Any]) -> Experiment:
    found = experiments.from_json(record["experiment"])
    if not isinstance(found, Experiment):
        raise UserError(f"{run.record} is damaged: it holds no experiment")
    return found


def load(folder: Path) -> tuple[Run, Experiment, Vocabularies]:
    """An existing run folder with its experiment as it was resolved then, and its vocabularies.

    Raises:
        UserError: not a run folder, or one with a damaged record or vocabulary.
    """
    run = Run(folder)
    record = _read_record(run)
    vocabulary = Vocabularies.load(run.vocabulary)
    if vocabulary.fingerprint != record["vocabulary"]:
        raise UserError(f"{run.vocabulary} is not the vocabulary this run was trained with")
    return run, _experiment(run, record), vocabulary


def begun_from(experiment: Experiment) -> tuple[Run, Experiment, Vocabularies] | None:
    """The run whose weights training begins with, as `load` gives it; None: training begins with random ones.

    Raises:
        UserError: it is no run, or one of another kind of task.
    """
    if not experiment.init_from:
        return None
    found = load(storage.folder(experiment.init_from))
    if found[1].task.linearisation != experiment.task.linearisation:
        raise UserError(f"--init_from {experiment.init_from}: one of the two translates, the other parses")
    return found


def going_on(folder: Path, init_from: str) -> tuple[Run, Experiment, Vocabularies] | None:
    """The run in `folder`, as `load` gives it, if there is one that was begun with the weights of `init_from`."""
    if not init_from or not Run(folder).record.is_file():
        return None
    found = load(folder)
    return found if found[1].init_from == init_from else None


def averaged(run: Run) -> list[int]:
    """The steps that the weights of a run folder made by `t2t average` are the mean of; [] for one that was trained."""
    return _read_record(run).get("averaged", [])


def imported_from(run: Run) -> str:
    """The folder that the weights of a run made by `t2t import` come from; "" for one that was trained."""
    return _read_record(run).get("imported", "")


def parts(run: Run) -> list[dict[str, Any]]:
    """How each part of a run was made, in order: "after_step", "commit", "device", "python", "versions"."""
    return _read_record(run)["parts"]


def ends(run: Run) -> set[int]:
    """The steps after which an earlier part of a run ended."""
    return {part["after_step"] for part in parts(run)}


def data(run: Run) -> dict[str, Any]:
    """What preparing its data reported: "pairs", "kept", "dropped", "lengths", "inputs" and so on.

    Of imported weights nothing but a "fingerprint" that is empty.
    """
    return _read_record(run)["data"]


@contextlib.contextmanager
def derive(run: Run, folder: Path, steps: list[int]) -> Iterator[Run]:
    """A new run folder like `run`, for weights averaged over `steps`: what is written inside appears whole, at the end.

    Raises:
        UserError: there is something in its place already, or it cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --to")
    with storage.replaced(folder) as place:
        new = Run(place)
        for file in run.vocabulary.iterdir():
            storage.write(new.vocabulary / file.name, file.read_bytes())
        yield new
        write_json(new.record, {**_read_record(run), "averaged": steps})  # last: with it a folder is one of a run


@contextlib.contextmanager
def imported(folder: Path, experiment: Experiment, vocabulary: Vocabularies, where: Path, device: str) -> Iterator[Run]:
    """A new run folder for weights that come from `where`: what is written inside appears whole, at the end.

    Raises:
        UserError: there is something in its place already, or it cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --run")
    with storage.replaced(folder) as place:
        new = Run(place)
        for name, content in vocabulary.files().items():
            storage.write(new.vocabulary / name, content)
        yield new
        record = {
            "experiment": experiments.to_json(experiment),
            "vocabulary": vocabulary.fingerprint,
            "data": {"fingerprint": ""},
            "parts": [_part(device, 0)],
            "imported": str(where),
        }
        write_json(new.record, record)  # last: with it a folder is one of a run


def commit() -> str:
    """The commit of t2t's own checkout, with "+" if files differ from it; "" for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty.strip() else "")


# ------------------------------------------------------------------------------ Metrics


class Board:
    """TensorBoard's files of a run. Those of a bucket are written on this machine, and copied there now and then."""

    def __init__(self, run: Run, folder: Path, step: int) -> None:
        """`folder`: where they are written. What was written past `step` is hidden."""
        self._writer, self._written = _tensorboardx().SummaryWriter(str(folder), purge_step=step + 1), folder
        self._to, self._copied = run.folder / "tensorboard", time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """The numbers of a row of metrics.jsonl."""
        for name, value in row.items():
            if name not in ("step", "split"):
                self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])
        if time.monotonic() - self._copied > COPIED:
            self._copy()

    def close(self) -> None:
        """Nothing is added any more."""
        self._writer.close()
        self._copy()

    def _copy(self) -> None:
        self._writer.flush()
        for path in self._written.iterdir() if self._written != self._to else ():
            storage.write(self._to / path.name, path.read_bytes())
        self._copied = time.monotonic()


def _tensorboardx() -> Any:
    """The package, imported as if PyTorch were not there: for tensors that it is never given it takes seconds more."""
    there = "torch" in sys.modules
    if not there:
        sys.modules["torch"] = None  # type: ignore[assignment] # what makes an import of it fail
    try:
        import tensorboardX
    finally:
        if not there:
            del sys.modules["torch"]
    return tensorboardX


@contextlib.contextmanager
def tensorboard(run: Run, step: int) -> Iterator[Board]:
    """TensorBoard's files of a run that goes on after `step`."""
    with contextlib.ExitStack() as stack:
        folder = run.folder / "tensorboard"
        if storage.remote(folder):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield stack.enter_context(contextlib.closing(Board(run, folder, step)))


def append_metrics(run: Run, row: dict[str, Any], board: Board) -> None:
    """One more line of metrics.jsonl, and its numbers for TensorBoard.

    Raises:
        UserError: it cannot be written.
    """
    storage.append(run.metrics, json.dumps(row, allow_nan=False))
    board.add(row)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was torn off is left out.

    Raises:
        UserError: another line is damaged; names it.
    """
    lines = storage.read(run.metrics).split("\n") if run.metrics.exists() else []
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # after the last end of a line stands nothing, or a torn line
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise UserError(f"{run.metrics}, line {number} is damaged: mend or remove it") from None
    return rows


def cut_metrics(run: Run, step: int) -> None:
    """Drops the rows past `step`, so that a resumed run writes each row once, and mends a torn last line."""
    rows = [row for row in read_metrics(run) if row["step"] <= step]
    storage.write(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def write_batch(run: Run, step: int, pairs: list[tuple[str, str]]) -> Path:
    """The sentence pairs that the batch of a step consists of, as a file of JSON."""
    path = run.folder / f"not_finite_step{step}.json"
    write_json(path, {"step": step, "pairs": pairs})
    return path


# ------------------------------------------------------------------------------ Evaluations


class Member(NamedTuple):
    """One of the runs that an evaluation outside of run folders is of, as its scores.json says it."""

    run: str  # its folder, as it was given
    checkpoints: list[int]  # the steps that its weights are the mean of


def write_evaluation(run: Run, name: str, texts: dict[str, list[str]], summary: dict[str, Any]) -> Path:
    """A folder below evaluations/, in place of one of this name: the same, evaluated before.

    Of many processes the first writes.
    """
    folder = run.folder / "evaluations" / name
    if distributed.first():
        write_evaluation_at(folder, texts, summary)
    return folder


def write_evaluation_at(folder: Path, texts: dict[str, list[str]], summary: dict[str, Any]) -> None:
    """A folder, whole or not at all: each list of `texts` as a file of lines, and scores.json.

    Raises:
        UserError: it cannot be written.
    """
    with storage.replaced(folder) as place:
        for kind, lines in texts.items():
            storage.write(place / f"{kind}.txt", "".join(f"{line}\n" for line in lines))
        write_json(place / "scores.json", summary)  # last: with it a folder is one of an evaluation


def check_apart(folder: Path) -> None:
    """Raises UserError unless an evaluation can have `folder` for itself, outside of those of a run.

    What lies in a run folder is of this run alone.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --out")
    for above in [*folder.resolve().parents][:2]:
        if Run(above).record.is_file():
            raise UserError(f"{folder} is in the run folder {above}: choose another folder with --out")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A folder below evaluations/, and what its scores.json says."""

    folder: Path
    summary: dict[str, Any]

    def lines(self, kind: str) -> list[str]:
        """The "sources", "hypotheses" or "references"; raises UserError when the file is missing or broken."""
        return storage.read(self.folder / f"{kind}.txt").split("\n")[:-1]

    def other_task(self, task: Task) -> dict[str, tuple[Any, Any]]:
        """The knobs in which `task` and the one that was evaluated differ; none where scores.json is too old to say."""
        if "task" not in self.summary:
            return {}
        found = experiments.differences(task, experiments.from_json(self.summary["task"]))
        return {f"task.{path}": pair for path, pair in found.items()}


def evaluations(run: Run, split: str) -> list[Evaluation]:
    """Those of a split, the newest last: by the step of their weights, then by when they were written.

    Raises:
        UserError: a scores.json is damaged; names it.
    """
    of_split = [each for each in _of_this_run(run) if each.summary["split"] == split]
    written = {each.folder: storage.modified(each.folder / "scores.json") for each in of_split}
    return sorted(of_split, key=lambda each: (each.summary["checkpoints"][-1], written[each.folder], each.folder))


def set_evaluations_aside(run: Run, step: int) -> int:
    """Moves evaluations of weights after `step` out of evaluations/; how many.

    Raises:
        UserError: a scores.json is damaged, or they cannot be moved.
    """
    later = [each for each in _of_this_run(run) if each.summary["checkpoints"][-1] > step]
    for each in later:
        storage.set_aside(each.folder, run.set_aside / "evaluations")
    return len(later)


def _of_this_run(run: Run) -> list[Evaluation]:
    """One that was written elsewhere, perhaps of several runs together, is none of this run's, wherever it lies now."""
    paths = (run.folder / "evaluations").glob("*/scores.json")
    found = [evaluation(path.parent) for path in paths if path.parent.suffix != UNFINISHED]
    return [each for each in found if "members" not in each.summary]


def evaluation(folder: Path) -> Evaluation:
    """The one in this folder; raises UserError when its scores.json is missing or damaged."""
    return Evaluation(folder, _read_summary(folder / "scores.json"))


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(storage.read(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    keys = summary.keys() if isinstance(summary, dict) else set()
    if not {"split", "decoding"} <= keys or not {"checkpoints", "members"} & keys:
        raise UserError(f"{path} is damaged: it is not the summary of an evaluation")
    return summary


def paired(first: Evaluation, second: Evaluation) -> tuple[list[str], list[str], list[str]]:
    """The outputs of two evaluations, and the references that they share.

    Raises:
        UserError: their sources or references differ, or one of them has not an output a line.
    """
    for kind in ("sources", "references"):
        if first.lines(kind) != second.lines(kind):
            raise UserError(f"{first.folder} and {second.folder} are not of the same data: their {kind} differ")
    references = first.lines("references")
    for each in (first, second):
        if (there := len(each.lines("hypotheses"))) != len(references):
            raise UserError(f"{each.folder} is damaged: {there} outputs for {len(references)} references")
    return first.lines("hypotheses"), second.lines("hypotheses"), references
