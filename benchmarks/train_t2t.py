"""Trains with t2t on the batches it makes itself: WORK.json"""

import json
import math
import sys
from pathlib import Path

import jax
from contender import Found, serve

from t2t import bench, compilation, experiment, memory, sharding

if __name__ == "__main__":
    compilation.keep_compiled()
    memory.one_heap()
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["dtype"] == "float32" and jax.default_backend() != "cpu":
        # As PyTorch multiplies: JAX's default is TF32 on a GPU, and bfloat16 on a TPU.
        jax.config.update("jax_default_matmul_precision", "highest")
    chosen = experiment.override(experiment.get(task["experiment"]), task["knobs"])
    mesh = sharding.make_mesh(chosen.mesh)
    trainer = bench.Trainer(chosen, mesh, lambda line: print(line, file=sys.stderr))
    trainer.compile()
    trainer.warm()

    def work() -> Found:
        """The next steps."""
        found = trainer.run(task["steps"])
        assert math.isfinite(found["loss"])
        return found

    def after() -> Found:
        """What the machine can do at most, at this hour."""
        return {"matrix_rate": bench.matrix_rate(mesh, task["dtype"])}

    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(trainer.state.params))
    serve(work, after, version="this commit", parameters=parameters)
