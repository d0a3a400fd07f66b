"""Compiled programs are kept between runs: the second start of an experiment compiles next to nothing."""

import hashlib
import platform
import warnings
from pathlib import Path

import jax

from t2t.data.prepare import cache_folder
from t2t.errors import UserError


def keep_compiled() -> None:
    """Turns on JAX's persistent compilation cache, in t2t's cache folder, unless JAX was given a folder already.

    JAX compiles again what it cannot read back, such as an entry torn by a crash, but would leave it in place for ever
    and does not name it. So one damaged entry empties the cache, and what is compiled next is kept again.
    """
    if jax.config.values.get("jax_compilation_cache_dir"):
        return
    folder = cache_folder() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror} (set T2T_DATA to another folder)") from None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    show = warnings.showwarning

    def on_warning(message: Warning | str, *where: object, **more: object) -> None:
        if "Error reading persistent compilation cache entry" in str(message):
            forget(folder)
        else:
            show(message, *where, **more)  # pyright: ignore[reportArgumentType]

    warnings.showwarning = on_warning


def forget(folder: Path) -> None:
    """Empties a compilation cache."""
    for entry in folder.glob("*-cache"):
        entry.unlink(missing_ok=True)


def _machine() -> str:
    """A name for this kind of machine: programs compiled for one processor may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
