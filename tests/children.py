"""Processes of t2t that begin with all imported: forked from one that did nothing but import.

They run, fail and are killed as any process; but each saves the seconds in which JAX is loaded.
"""

import atexit
import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from t2t.data.corpora import Embedded
from t2t.data.treebank import EmbeddedTrees

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["t2t.train", "t2t.evaluate", "t2t.translate", "t2t.cost", "t2t.report.page"])
FEW = {"train": 8000, "dev": 40, "test": 40}  # pairs, or trees


class Child:
    """A process of `main(words)`, a function of a module, that gives its exit code; in use like `subprocess.Popen`."""

    def __init__(
        self, main: Callable[..., int], words: list[str], cwd: Path, env: Mapping[str, str], out: Path | None = None
    ) -> None:
        """What it writes to standard output goes to `out`; without one to `stderr`, as what it says."""
        read, write = SERVER.Pipe(duplex=False)
        with read, write:
            self._process = SERVER.Process(target=_run, args=(main, words, str(cwd), dict(env), write, out))
            self._process.start()
            self.stderr = os.fdopen(os.dup(read.fileno()), errors="replace")
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; of one that a signal ended the signal's number, negative."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """The exit code, at its end."""
        self._process.join()
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[None, str]:
        """What it says up to its end; after so many seconds it is killed."""
        patience = threading.Timer(timeout, self.kill)
        patience.start()
        with self.stderr as said:
            found = said.read()
        self.wait()
        patience.cancel()
        return None, found

    def send_signal(self, number: int) -> None:
        """To this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL."""
        self._process.kill()


def _run(
    main: Callable[..., int], words: list[str], cwd: str, env: dict[str, str], said: Connection, out: Path | None
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(said.fileno(), 2)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if out else 2, 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        sys.exit(main(words))
    finally:
        atexit._run_exitfuncs()  # which processes of multiprocessing end without


def have_little_data() -> None:
    """The embedded corpora are small in this process from now on."""
    pairs, trees = Embedded.pairs, EmbeddedTrees.trees
    Embedded.pairs = lambda self, split: itertools.islice(pairs(self, split), FEW[split])
    EmbeddedTrees.trees = lambda self, split: itertools.islice(trees(self, split), FEW[split])


def on_little_data(words: list[str]) -> int:
    """`t2t` with small embedded corpora."""
    from t2t.__main__ import main

    have_little_data()
    return main(words)
