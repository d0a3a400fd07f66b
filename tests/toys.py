"""Small models and batches that several tests use."""

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import Batch
from t2t.data.batching import BatchingConfig, fill
from t2t.data.corpora import Text
from t2t.data.translation import Translation
from t2t.experiment import Experiment
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig
from t2t.sharding import MeshConfig, unboxed


def config(**changes) -> TransformerConfig:
    """A model of two layers in which no two sizes are equal, so that a mixed-up axis shows."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, dtype="float32")
    return TransformerConfig(**{**sizes, **changes})


def params(config, scale=0.3, seed=0):
    """Weights of the right shapes, none left at its initial zero or one."""
    batch = batch_of([([1], [1])])
    made = unboxed(config.build().init(jax.random.key(seed), batch.source, batch.target))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32), made)


def batch_of(pairs, rows=4, length=8) -> Batch:
    """Pairs of token lists, one a row."""
    return Batch(fill([s for s, _ in pairs], rows, length), fill([t for _, t in pairs], rows, length))


def as_reference(params, config):
    """Our stacked weights under the reference's names, one dict a layer."""
    p = jax.tree.map(np.asarray, unboxed(params))["params"]

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


WORDS = ["ten", "cat", "sun", "red", "old", "sea", "map", "ice"]


def write_reversals(path, count):
    """Lines of three to five words, a tab, and the same words backwards."""
    rng = np.random.default_rng(count)
    lines = []
    for length in rng.integers(3, 6, count):
        words = [WORDS[i] for i in rng.integers(0, len(WORDS), length)]
        lines.append(f"{' '.join(words)}\t{' '.join(reversed(words))}\n")
    path.write_text("".join(lines))


def reversal(folder) -> Experiment:
    """The experiment that learns them, its files written into `folder`."""
    files = {split: str(folder / f"{split}.tsv") for split in ("train", "dev", "test")}
    for split, count in (("train", 1200), ("dev", 64), ("test", 32)):
        write_reversals(folder / f"{split}.tsv", count)
    return Experiment(
        name="reversal",
        reports="nothing",
        task=Translation(Text(**files), "en", "en"),
        model=config(vocab_size=40, d_model=32, d_ff=64, num_heads=4, d_k=8, d_v=8, max_length=64),
        optimizer=OptimizerConfig(warmup_steps=60, scale=0.3),
        batching=BatchingConfig(tokens=512, max_length=16, shapes=1),
        mesh=MeshConfig(data=1),
        train_steps=12,
        log_every=4,
        evaluate_every=6,
        checkpoint_every=5,
        average=2,
    )
