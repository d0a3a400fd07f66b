"""Compiled programs are kept between runs; a damaged one is compiled again and kept again."""

import os
import subprocess
import sys

PROGRAM = """
import os, warnings
from pathlib import Path
import jax, jax.numpy as jnp
from t2t.compilation import keep_compiled
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name) if name.endswith("/cache_hits") else None)

def say_hits():
    found.clear()
    jax.clear_caches()
    assert jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(8)).sum() > 6
    print(len(found))

say_hits()
"""
DAMAGED = """
entries = list(Path(os.environ["T2T_DATA"]).glob("compiled/*/*-cache"))
for damage in (lambda x: x[: len(x) // 2], lambda x: b"", lambda x: x[:-20] + bytes(20)):
    warnings.simplefilter("default")  # as in a process of its own: what was said once is said again
    for entry in entries:
        entry.write_bytes(damage(entry.read_bytes()))
    say_hits()
    say_hits()
"""


def test_a_damaged_entry_is_a_miss_and_is_written_anew(tmp_path):
    env = {**os.environ, "T2T_DATA": str(tmp_path)}
    del env["JAX_COMPILATION_CACHE_DIR"]

    def hits(program):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert "Error reading" not in done.stderr
        return [int(line) for line in done.stdout.splitlines()]

    assert hits(PROGRAM) == [0]
    kept, *others = hits(PROGRAM + DAMAGED)
    assert kept > 0 and others == [0, kept] * 3
