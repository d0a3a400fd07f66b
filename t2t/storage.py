"""Where runs are kept: in a folder of this machine, or in a bucket of Google Cloud Storage by its address, gs://….

A bucket has no folders, no renaming and no locks: what readers take for whole is written last there.
"""

import contextlib
import fcntl
import importlib.util
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from t2t.errors import Passing, UserError

UNFINISHED = ".unfinished"  # ends the name of what is still being written
BUCKET = "gs://"
UNAVAILABLE = ("UNAVAILABLE:", "DEADLINE_EXCEEDED:", "ABORTED:")
RENEWED = 10  # seconds after which a process says again that it holds a folder in a bucket
ENDED = 25  # seconds of silence after which it is taken to have ended


def folder(text: str) -> Path:
    """The folder with this path or address. An address is of etils's kind, which has what t2t uses of pathlib's.

    Raises:
        UserError: an address of another kind, or what reads buckets is not installed.
    """
    check_address(text)
    if "://" not in text:
        return Path(text)
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: t2t reads and writes buckets with gcsfs: pip install 't2t[gcs]'")
    # Whether TensorFlow is installed too must not change how buckets are read.
    os.environ["EPATH_USE_TF"] = "false"
    import fsspec.config
    from etils import epath

    fsspec.config.conf["gs"] = {"use_listings_cache": False}  # other processes write too
    return cast(Path, epath.Path(text))


def check_address(text: str) -> None:
    """Raises UserError for an address of another kind than `folder` takes, or of a bucket as a whole."""
    bucket, _, inside = text.removeprefix(BUCKET).partition("/")
    if "://" in text and not (text.startswith(BUCKET) and bucket and inside.strip("/")):
        raise UserError(f"{text}: a run folder is a path or an address of Google's, {BUCKET}BUCKET/FOLDER")


def remote(path: Path) -> bool:
    """Whether a path is an address."""
    return str(path).startswith(BUCKET)


def absolute(path: Path) -> Path:
    """The same place whatever the working folder becomes."""
    return path if remote(path) else path.absolute()


def errors() -> tuple[type[Exception], ...]:
    """What reading and writing raise: OSError, and of buckets also what their client has for it."""
    if "gcsfs" not in sys.modules:
        return (OSError,)
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, ClientError, HttpError, GoogleAuthError)


def reason(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def failed(what: str, error: BaseException) -> UserError:
    """The error for what could not be done: `Passing` where a bucket's client would try again itself, and did."""
    return (Passing if _passing(error) else UserError)(f"{what}: {reason(error)}")


def _passing(error: BaseException) -> bool:
    if "gcsfs" not in sys.modules:
        return False
    from gcsfs.retry import is_retriable

    # Orbax writes by TensorStore, whose errors are known by what they say.
    passing = isinstance(error, TimeoutError | ConnectionError) or str(error).startswith(UNAVAILABLE)
    return passing or is_retriable(error)


# ------------------------------------------------------------------------------ Files


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: beside its place, then renamed; a bucket does so itself.

    Raises:
        UserError: it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    beside = _beside(path)
    try:
        if beside != path:
            path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        if beside != path:
            beside.replace(path)
    except errors() as error:
        raise failed(f"cannot write {path}", error) from None
    finally:
        if beside != path:
            with contextlib.suppress(OSError):
                beside.unlink()


def _beside(path: Path) -> Path:
    """Where to write what then takes the place of `path`: in a bucket, `path` itself."""
    if remote(path):
        return path
    if path.name in ("", ".."):
        raise UserError(f"cannot write {path}: it is a folder that is there; give another name")
    return path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")


def append(path: Path, line: str) -> None:
    """One more line of a file. In a bucket nothing can be added to what is there: it is written anew.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if remote(path):
            path.write_bytes((path.read_bytes() if path.exists() else b"") + line.encode() + b"\n")
        else:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    except errors() as error:
        raise failed(f"cannot write {path}", error) from None


def read(path: Path) -> str:
    """A text file.

    Raises:
        UserError: there is none, it cannot be read, or it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: not UTF-8 (byte {error.start + 1})") from None
    except errors() as error:
        raise failed(f"cannot read {path}", error) from None


def modified(path: Path) -> float:
    """When a file was written, in seconds since 1970; in a bucket whole ones."""
    found: Any = path.stat()
    return found.mtime if remote(path) else found.st_mtime


# ------------------------------------------------------------------------------ Folders


def content(path: Path) -> list[Path]:
    """What is in a folder, in no order; of a bucket nothing, if there is no such folder.

    Raises:
        OSError: it cannot be read, or others of `errors`.
    """
    return [*path.iterdir()] if not remote(path) or path.is_dir() else []


def move(path: Path, to: Path) -> None:
    """Moves a folder; in a bucket file by file.

    Raises:
        OSError: it cannot be moved, or others of `errors`.
    """
    if not remote(path):
        path.rename(to)
        return
    for file in _files(path):
        (to / file.relative_to(path)).write_bytes(file.read_bytes())
    remove(path)


def set_aside(path: Path, where: Path) -> None:
    """Moves a folder into another, under its name, or with a number after it if there is one of that name.

    Raises:
        UserError: it cannot be moved.
    """
    try:
        if not remote(where):
            where.mkdir(parents=True, exist_ok=True)
        there = {old.name for old in content(where)}
        names = (path.name, *(f"{path.name}.{number}" for number in range(1, len(there) + 1)))
        move(path, where / next(name for name in names if name not in there))
    except errors() as error:
        raise failed(f"cannot move {path} to {where}", error) from None


def _files(path: Path) -> Iterator[Path]:
    """All files below a folder."""
    for each in content(path):
        yield from _files(each) if each.is_dir() else [each]


def remove(path: Path) -> None:
    """Removes a folder, if it is there, with all that is in it."""
    if not remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        cast(Any, path).rmtree()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of the one at `path`, or leaves no trace if that fails.

    In a bucket it is there at once: what readers look for has to be written last.

    Raises:
        UserError: it cannot be written.
    """
    beside = _beside(path)
    try:
        if beside == path:
            remove(path)
        yield beside
        if beside != path:
            shutil.rmtree(path, ignore_errors=True)
            beside.rename(path)
    except BaseException as error:
        with contextlib.suppress(*errors()):
            remove(beside)
        if isinstance(error, errors()):
            raise failed(f"cannot write {path}", error) from None
        raise


# ------------------------------------------------------------------------------ Locks


@contextlib.contextmanager
def alone(lock: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """No other process is inside with the file `lock` meanwhile: if one is, calls `waiting` and waits for it to end.

    Raises:
        OSError: the file or its folder cannot be made or locked.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """No other process holds `lock` meanwhile; it ends with this process, however that ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    owner = f"process {os.getpid()} on {platform.node()}"
    with _leased(lock, owner) if remote(lock) else _locked(lock, owner):
        yield


def _in_use(lock: Path, owner: str) -> UserError:
    return UserError(f"{lock.parent} is in use by {owner or 'another process'}: wait for it, or end it")


@contextlib.contextmanager
def _locked(path: Path, owner: str) -> Iterator[None]:
    try:
        lock = open(path, "a+")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise _in_use(path, lock.read()) from None
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror}") from None
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
        yield
        lock.truncate(0)


@contextlib.contextmanager
def _leased(path: Path, owner: str) -> Iterator[None]:
    """A bucket locks nothing: its holder writes something new into the file again and again.

    One in which nothing changes for `ENDED` seconds is of a process that was killed. Whose clock is right is not asked.
    """
    before = _owner(path)
    if before:
        until = time.monotonic() + ENDED
        while (now := _owner(path)) == before and time.monotonic() < until:
            time.sleep(1)
        if now and now != before:
            raise _in_use(path, now.partition("\n")[0])
    ours = f"{owner}\n{uuid.uuid4()}"
    write(path, ours)
    time.sleep(1)  # of two that write now, the last one has it
    if (now := _owner(path)) != ours:
        raise _in_use(path, now.partition("\n")[0])
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWED):
            with contextlib.suppress(UserError):  # not to be reached for once; the next time comes
                write(path, f"{owner}\n{uuid.uuid4()}")

    thread = threading.Thread(target=renew, daemon=True, name="t2t-lock")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(*errors()):
            path.unlink()


def _owner(path: Path) -> str:
    """What a lock says; "" if there is none."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except errors() as error:
        raise failed(f"cannot read {path}", error) from None
