"""The run folder: what is written where. Nothing else in t2t writes into it but Orbax its checkpoints.

experiment.json   the resolved experiment, versions, commit, device, fingerprints of vocabulary and data
vocabulary/       the shared sentencepiece model, or that of sources and the tokens of targets
metrics.jsonl     one object a line: step, split, loss, tokens, ...
tensorboard/      the same for TensorBoard
checkpoints/      Orbax
evaluations/      a folder each: sources, hypotheses, references, scores with their signatures
set_aside/        checkpoints that the user did not want to go on from
lock              held by the process that trains
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from t2t import distributed
from t2t import experiment as experiments
from t2t.data.corpora import read_lines
from t2t.data.prepare import UNFINISHED, Prepared
from t2t.data.vocabulary import Vocabularies
from t2t.errors import UserError
from t2t.experiment import Experiment

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
        """Checkpoints that the user did not want to go on from."""
        return self.folder / "set_aside"

    @property
    def lock(self) -> Path:
        """lock"""
        return self.folder / "lock"


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: beside its place, then renamed.

    Raises:
        UserError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def write_json(path: Path, value: Any) -> None:
    """`write` of an indented JSON value."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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
    try:
        lock = open(run.lock, "a+")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{folder} is in use by {lock.read() or 'another process'}: wait for it, or end it"
            ) from None
        except OSError as error:
            raise UserError(f"cannot lock {run.lock}: {error.strerror}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        _refuse_another(run, experiment, prepared)  # what was there before may have been made since
        _remove_torn(run)
        yield run
        lock.truncate(0)


def _remove_torn(run: Run) -> None:
    """Removes what processes left that ended while they wrote; none of them writes any more."""
    for folder in (run.folder, run.vocabulary):
        for path in folder.glob(f"*{UNFINISHED}"):
            path.unlink()


def begin(run: Run, experiment: Experiment, prepared: Prepared, device: str, step: int) -> None:
    """Writes record and vocabulary: training goes on after `step`. Each part of a run adds how it was made."""
    record = _read_record(run) if run.record.is_file() else {"parts": []}
    part = {
        "after_step": step,
        "commit": commit(),
        "device": device,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }
    record = {
        "experiment": experiments.to_json(experiment),
        "vocabulary": prepared.vocabulary.fingerprint,
        "data": {"fingerprint": prepared.fingerprint, **prepared.report},
        "parts": [*record["parts"], part],
    }
    write_json(run.record, record)
    for name, content in prepared.vocabulary.files().items():  # after the record: with it a folder can be opened again
        write(run.vocabulary / name, content)


def _refuse_another(run: Run, experiment: Experiment, prepared: Prepared) -> None:
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in run.folder.iterdir() if path.suffix != UNFINISHED and path != run.lock]
        if run.checkpoints in there and not [*run.checkpoints.iterdir()]:  # of a run that did not get to begin
            there.remove(run.checkpoints)
    except OSError as error:
        raise UserError(f"cannot write {run.folder}: {error.strerror}") from None
    if run.record in there:
        _refuse_record(run, experiment, prepared)
    elif there:
        raise UserError(f"{run.folder} is not empty and not a run folder: choose another with --run")


def _refuse_record(run: Run, experiment: Experiment, prepared: Prepared) -> None:
    record = _read_record(run)
    if record.get("averaged"):
        raise UserError(f"{run.folder} holds averaged weights only: it cannot be trained further")
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
        record = json.loads(run.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = "" if run.folder.is_dir() else ", and no such folder"
        raise UserError(f"{run.folder} is not a run folder: no experiment.json in it{there}") from None
    except OSError as error:
        raise UserError(f"{run.folder} is not a run folder: {run.record}: {error.strerror}") from None
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


def averaged(run: Run) -> list[int]:
    """The steps that the weights of a run folder made by `t2t average` are the mean of; [] for one that was trained."""
    return _read_record(run).get("averaged", [])


def parts(run: Run) -> list[dict[str, Any]]:
    """How each part of a run was made, in order: "after_step", "commit", "device", "python", "versions"."""
    return _read_record(run)["parts"]


@contextlib.contextmanager
def derive(run: Run, folder: Path, steps: list[int]) -> Iterator[Run]:
    """A new run folder like `run`, for weights averaged over `steps`: what is written inside appears whole, at the end.

    Raises:
        UserError: there is something in its place already, or it cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder with --to")
    new = Run(folder.with_name(f"{folder.name}.{os.getpid()}{UNFINISHED}"))
    try:
        for file in run.vocabulary.iterdir():
            write(new.vocabulary / file.name, file.read_bytes())
        write_json(new.record, {**_read_record(run), "averaged": steps})
        yield new
        new.folder.rename(folder)
    finally:
        shutil.rmtree(new.folder, ignore_errors=True)


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


def tensorboard(run: Run, step: int) -> SummaryWriter:
    """A writer of TensorBoard's event files that hides what was written past `step`; a context manager."""
    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)


def append_metrics(run: Run, row: dict[str, Any], board: SummaryWriter) -> None:
    """One more line of metrics.jsonl, and its numbers for TensorBoard."""
    try:
        with open(run.metrics, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {run.metrics}: {error.strerror}") from None
    for name, value in row.items():
        if name not in ("step", "split"):
            board.add_scalar(f"{row['split']}/{name}", value, row["step"])


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was torn off is left out.

    Raises:
        UserError: another line is damaged; names it.
    """
    lines = run.metrics.read_text(encoding="utf-8").split("\n") if run.metrics.is_file() else []
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
    write(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def write_batch(run: Run, step: int, pairs: list[tuple[str, str]]) -> Path:
    """The sentence pairs that the batch of a step consists of, as a file of JSON."""
    path = run.folder / f"not_finite_step{step}.json"
    write_json(path, {"step": step, "pairs": pairs})
    return path


# ------------------------------------------------------------------------------ Evaluations


def write_evaluation(run: Run, name: str, texts: dict[str, list[str]], summary: dict[str, Any]) -> Path:
    """A folder below evaluations/, whole or not at all: each list of `texts` as a file of lines, and scores.json.

    Of many processes the first writes.
    """
    folder = run.folder / "evaluations" / name
    if not distributed.first():
        return folder
    beside = folder.with_name(f"{name}.{os.getpid()}{UNFINISHED}")
    for kind, lines in texts.items():
        write(beside / f"{kind}.txt", "".join(f"{line}\n" for line in lines))
    write_json(beside / "scores.json", summary)
    shutil.rmtree(folder, ignore_errors=True)  # the same weights on the same data in the same way, evaluated before
    beside.rename(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A folder below evaluations/, and what its scores.json says."""

    folder: Path
    summary: dict[str, Any]

    def lines(self, kind: str) -> list[str]:
        """The "sources", "hypotheses" or "references"; raises UserError when the file is missing or broken."""
        return list(read_lines(self.folder / f"{kind}.txt"))


def evaluations(run: Run, split: str) -> list[Evaluation]:
    """Those of a split, the newest last: by the step of their weights, then by when they were written.

    Raises:
        UserError: a scores.json is damaged; names it.
    """
    paths = (run.folder / "evaluations").glob("*/scores.json")
    found = [Evaluation(path.parent, _read_summary(path)) for path in paths if path.parent.suffix != UNFINISHED]
    written = {each.folder: (each.folder / "scores.json").stat().st_mtime for each in found}
    of_split = [each for each in found if each.summary["split"] == split]
    return sorted(of_split, key=lambda each: (each.summary["checkpoints"][-1], written[each.folder], each.folder))


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(summary, dict) or not {"split", "checkpoints", "decoding"} <= summary.keys():
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
