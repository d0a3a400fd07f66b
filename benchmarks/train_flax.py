"""Trains with the step of flax's examples/wmt, on packed rows as its own input makes them: WORK.json FOLDER

FOLDER has models.py and train.py of that example. Its other modules read data and decode; they are not needed, and
neither is what they import.
"""

import functools
import importlib
import json
import math
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contender import Found, serve
from flax import jax_utils

NOT_NEEDED = ("tensorflow", "clu", "ml_collections", "bleu", "decode", "input_pipeline")


def example(folder: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Its modules `models` and `train`."""
    importlib.import_module("flax.training.checkpoints")  # looks for TensorFlow itself: before that is taken away
    for name in NOT_NEEDED:
        sys.modules[name] = MagicMock()
    sys.path.insert(0, folder)
    import models  # pyright: ignore[reportMissingImports]
    import train  # pyright: ignore[reportMissingImports]

    return models, train


def main(path: str, folder: str) -> None:
    """Answers until its input ends."""
    models, train = example(folder)
    task = json.loads(Path(path).read_text())
    batches = [{name: np.asarray(x)[None] for name, x in batch.items()} for batch in task["packed"]]
    config = models.TransformerConfig(
        vocab_size=task["vocab_size"],
        output_vocab_size=task["vocab_size"],
        share_embeddings=True,
        logits_via_embedding=True,
        dtype=jnp.dtype(task["dtype"]),
        emb_dim=task["d_model"],
        num_heads=task["num_heads"],
        num_layers=task["num_layers"],
        qkv_dim=task["num_heads"] * task["d_k"],
        mlp_dim=task["d_ff"],
        max_len=256,
        dropout_rate=task["p_drop"],
        attention_dropout_rate=0.0,
    )
    rate = train.create_learning_rate_schedule(1e-4, 1000)
    small = jnp.ones((2, 8), jnp.float32)
    params = jax.jit(models.Transformer(config.replace(deterministic=True)).init)(jax.random.key(0), small, small)[
        "params"
    ]
    state: Any = train.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.0),
        dynamic_scale=None,
    )
    state = jax_utils.replicate(state, jax.devices()[:1])
    step = functools.partial(train.train_step, config=config, learning_rate_fn=rate, label_smoothing=0.1)
    compiled = jax.pmap(step, axis_name="batch", donate_argnums=0, devices=jax.devices()[:1])
    keys = jax.random.split(jax.random.key(0), 1)

    def work() -> Found:
        nonlocal state
        losses = []
        for batch in batches:
            state, metrics = compiled(state, batch, dropout_rng=keys)
            losses.append(metrics["loss"])
        assert math.isfinite(sum(float(loss[0]) for loss in losses))
        return {"tokens": float(sum((batch["targets"] != 0).sum() for batch in batches))}

    serve(work, version=version("flax"), parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)))


if __name__ == "__main__":
    main(*sys.argv[1:])
