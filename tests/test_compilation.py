"""Compiled programs are kept between runs; a damaged one is compiled again and kept again."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from t2t.compilation import keep_compiled
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
assert jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(8)).sum() > 6
print(len(hits))
"""


def test_a_damaged_entry_is_a_miss_and_is_written_anew(tmp_path):
    env = {**os.environ, "T2T_DATA": str(tmp_path)}
    del env["JAX_COMPILATION_CACHE_DIR"]

    def hits():
        found = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        assert "Error reading" not in found.stderr
        return int(found.stdout)

    assert hits() == 0
    kept = hits()
    assert kept > 0
    entries = list(tmp_path.glob("compiled/*/*-cache"))
    for damage in (lambda x: x[: len(x) // 2], lambda x: b"", lambda x: x[:-20] + bytes(20)):
        for entry in entries:
            entry.write_bytes(damage(entry.read_bytes()))
        assert hits() == 0
        assert hits() == kept
