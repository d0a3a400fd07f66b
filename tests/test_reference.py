"""Two ways, one answer: our model against a plain NumPy reading of the paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from t2t.batch import Batch
from t2t.data.batching import fill
from t2t.models.transformer import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=17, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, p_drop=0.1, dtype="float32"
)
PAIRS = [([5, 9, 3, 1], [7, 1]), ([4, 1], [11, 12, 13, 8, 1]), ([16, 3, 3, 8, 2, 1], [6, 5, 1])]


def as_reference(params, config):
    """Our stacked weights under the reference's names, one dict a layer."""
    p = jax.tree.map(np.asarray, nn.unbox(params))["params"]

    def attention(a):
        return {ours[0]: a[ours]["weight"] for ours in ("query", "key", "value", "output")}

    def layer(stack, i, names):
        s = jax.tree.map(lambda x: x[i], p[stack])
        norms = {f"norm{n}": s[f"residual_{n}"] for n in range(1, len(names) + 1)}
        f = s["feed_forward"]
        ffn = {
            "w1": f["inner"]["weight"],
            "b1": f["inner"]["bias"],
            "w2": f["outer"]["weight"],
            "b2": f["outer"]["bias"],
        }
        kinds = {"self": "self_attention", "cross": "cross_attention"}
        return {**norms, "ffn": ffn, **{n: attention(s[kinds[n]]) for n in names if n in kinds}}

    return {
        "embedding": p["embedding"]["table"],
        "positions": p["embedding"].get("positions"),
        "encoder": [layer("encoder", i, ("self", "ffn")) for i in range(config.num_layers)],
        "decoder": [layer("decoder", i, ("self", "cross", "ffn")) for i in range(config.num_layers)],
    }


def random_params(config, batch, seed=0):
    """Weights of the right shapes with nothing left at its initial zero or one."""
    params = nn.unbox(config.build().init(jax.random.key(seed), batch.source, batch.target))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), params)


def batch_of(pairs, rows=4, length=8):
    return Batch(fill([s for s, _ in pairs], rows, length), fill([t for _, t in pairs], rows, length))


@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_logits(positions):
    config = TransformerConfig(**{**vars(CONFIG), "positions": positions, "max_length": 16})
    batch = batch_of(PAIRS)
    params = random_params(config, batch)
    ours = config.build().apply(params, batch.source, batch.target)
    theirs = as_reference(params, config)
    for row, (source, target) in enumerate(PAIRS):
        expected = reference.decode(theirs, reference.encode(theirs, source), target)
        np.testing.assert_allclose(ours[row, : len(target)], expected, rtol=2e-4, atol=2e-4)
