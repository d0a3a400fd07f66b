"""Tests run on eight simulated CPU devices, so that layouts over devices can be tested anywhere."""

import os
import shutil
import sys
import tempfile
from types import SimpleNamespace

WORKER = "PYTEST_XDIST_WORKER"

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the tests' time is compiling, and what they compile runs once or twice: it need not be fast code.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

if WORKER not in os.environ:  # one cache of compiled programs for all workers and their subprocesses
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="t2t-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import pytest  # noqa: E402 - JAX reads the environment when it is first imported, by whatever comes next

LONGEST = ["distributed", "resume", "readme", "train", "decode", "notebooks", "storage"]  # files of tests


def pytest_unconfigure():
    if WORKER not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no process has one left when the others are done."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """Those a module compiled: of all modules they come to 6 GB, and to more mappings than a process may have."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """An experiment of seconds: three to five words in, the same backwards out; with a cache of its own."""
    import toys

    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2T_DATA", str(folder / "cache"))
        yield toys.reversal(folder)


@pytest.fixture
def t2t(capsys, monkeypatch):
    """Runs a command line of this process: (exit code, standard output, standard error)."""
    from t2t.__main__ import main

    def call(*words, stdin=b""):
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
            code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
