"""A CPU keeps the memory of a step for the next one: what is freed does not go back to the kernel."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from t2t import memory
memory.one_heap()
import jax, jax.numpy as jnp
from t2t.sharding import MeshConfig, make_mesh

n = 2**13

def work(x):
    product = jnp.outer(x, x)  # 256 MiB
    return (product @ product[:, :8]).sum()

step = jax.jit(work)
compiled = step.lower(jnp.ones(n)).compile()
size = memory.needed(compiled)
assert size > 2**28, size
mesh = make_mesh(MeshConfig())
memory.room = lambda mesh: int(sys.argv[1]) * size
memory.keep_freed(mesh, [compiled])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

compiled(jnp.ones(n)).block_until_ready()
before = faults()
for _ in range(3):
    compiled(jnp.ones(n)).block_until_ready()
print((faults() - before) * resource.getpagesize() / size / 3)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_steps_after_the_first_take_no_new_pages_unless_they_need_half_of_the_memory():
    """In parts of a step's memory: what each later step takes anew from the kernel."""

    def taken(room):
        found = subprocess.run([sys.executable, "-c", PROGRAM, room], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return float(found.stdout)

    assert taken("3") < 0.05
    assert taken("1") > 0.5
