"""Small models and batches that several tests use, and what a process of its own is told."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import Batch
from t2t.data.batching import BatchingConfig, fill
from t2t.data.corpora import Text
from t2t.data.language_modelling import LanguageModelling
from t2t.data.parsing import Parsing
from t2t.data.translation import Translation
from t2t.data.treebank import Trees
from t2t.decode import DecodingConfig
from t2t.experiment import Experiment
from t2t.models.language_model import LanguageModelConfig
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig
from t2t.sharding import MeshConfig, unboxed
from t2t.trees import TOP, Tree, bracketed


def environment(folder: Path, devices: int = 1, **more: str) -> dict[str, str]:
    """Of a process with a cache in `folder`, whose programs compile as quickly as these do: see conftest.py."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return {**os.environ, "T2T_DATA": str(folder / "cache"), "XLA_FLAGS": flags, **more}


def config(**changes) -> TransformerConfig:
    """A model of two layers in which no two sizes are equal, so that a mixed-up axis shows."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, dtype="float32")
    return TransformerConfig(**{**sizes, **changes})


def params(config, scale=0.3, seed=0):
    """Weights of the right shapes, none left at its initial zero or one."""
    batch = batch_of([([1], [1])])
    made = unboxed(jax.jit(config.build().init)(jax.random.key(seed), batch.source, batch.target))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32), made)


def drawn(config, scale=1.0, seed=0):
    """The same in a fraction of the time, about zero, and about one where norms scale."""
    batch = batch_of([([1], [1])])
    shapes = unboxed(jax.eval_shape(config.build().init, jax.random.key(seed), batch.source, batch.target))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        return jnp.asarray((path[-1].key == "scale") + scale * rng.normal(size=x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


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

    def embedding(table):
        return {"embedding": table["table"], "positions": table.get("positions")}

    decoder = ("self", "cross", "ffn") if "encoder" in p else ("self", "ffn")
    return {
        **embedding(p["embedding"]),
        "target": embedding(p["target_embedding"]) if "target_embedding" in p else None,
        "encoder": [layer("encoder", i, ("self", "ffn")) for i in range(config.num_layers) if "encoder" in p],
        "decoder": [layer("decoder", i, decoder) for i in range(config.num_layers)],
        "final_norms": [p.get("encoder_norm"), p["decoder_norm"]] if config.norm == "pre" else None,
        "rope": config.positions == "rope",
        "span": config.attention_span,
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
    for split, count in (("train", 1200), ("dev", 64), ("test", 32)):
        write_reversals(folder / f"{split}.tsv", count)
    return reversal_in(folder)


def reversal_in(folder) -> Experiment:
    """The experiment that learns them, its files in `folder` already."""
    files = {split: str(folder / f"{split}.tsv") for split in ("train", "dev", "test")}
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


def write_cycles(path, count):
    """Lines of three to five words, each the one that follows in WORDS on the one before it, the first on the last."""
    rng = np.random.default_rng(count)
    starts, lengths = rng.integers(0, len(WORDS), count), rng.integers(3, 6, count)
    lines = [" ".join(WORDS[(s + i) % len(WORDS)] for i in range(n)) for s, n in zip(starts, lengths, strict=True)]
    path.write_text("".join(f"{line}\n" for line in lines))


def cycles(folder) -> Experiment:
    """The experiment that models them, its files written into `folder`; a line's begin and end are chance."""
    for split, count in (("train", 800), ("dev", 48), ("test", 32)):
        write_cycles(folder / f"{split}.txt", count)
    files = {split: str(folder / f"{split}.txt") for split in ("train", "dev", "test")}
    sizes = dict(vocab_size=40, num_layers=1, d_model=32, d_ff=64, num_heads=4, d_k=8, d_v=8, p_drop=0.0)
    return Experiment(
        name="cycles",
        reports="nothing",
        task=LanguageModelling(Text(**files, target_column=0), duplicates="keep"),
        model=LanguageModelConfig(**sizes, dtype="float32"),
        optimizer=OptimizerConfig(warmup_steps=40, scale=0.3),
        batching=BatchingConfig(tokens=512, max_length=16, shapes=1),
        decoding=DecodingConfig(extra_length=8),
        mesh=MeshConfig(data=1),
        label_smoothing=0.0,
        train_steps=120,
        log_every=40,
        evaluate_every=120,
        checkpoint_every=60,
        average=2,
    )


# ------------------------------------------------------------------------------ Trees

LABELS = ("S", "NP", "VP", "PP", "-LRB-", "NP|X", "TOP")
TAGS = ("NN", "DT", "PRP$", ",", ".", ":", "``", "''", "-LRB-", "-RRB-", "XX", "<eos>")


def random_tree(rng, most=12) -> Tree:
    """A tree of at most `most` words: forests, bare leaves under TOP and unary chains are all among them."""
    nodes = [Tree(rng.choice(TAGS).item(), word=f"w{i}") for i in range(rng.integers(1, most + 1))]
    for _ in range(rng.integers(0, 2 * most)):
        begin, end = sorted(rng.integers(0, len(nodes), 2))
        nodes[begin : end + 1] = [Tree(rng.choice(LABELS).item(), tuple(nodes[begin : end + 1]))]
    return Tree(TOP, tuple(nodes))


LEXICON = {
    "DT": ("the", "a"),
    "NN": ("cat", "sea", "map", "sun"),
    "VBZ": ("sees", "eats"),
    "IN": ("of", "with"),
    ".": (".", "?"),
}


def _sentence(rng) -> Tree:
    """What its words tell the tree of: "of" begins a phrase of the noun before it, "with" one of the verb."""

    def leaf(tag, word=""):
        return Tree(tag, word=word or rng.choice(LEXICON[tag]).item())

    def noun_phrase():
        noun = Tree("NP", (*((leaf("DT"),) if rng.random() < 0.7 else ()), leaf("NN")))
        return noun if rng.random() < 0.7 else Tree("NP", (noun, phrase("of")))

    def phrase(word):
        return Tree("PP", (leaf("IN", word), leaf("NN")))

    rest = [make() for make in (noun_phrase, lambda: phrase("with")) if rng.random() < 0.5]
    return Tree(TOP, (Tree("S", (noun_phrase(), Tree("VP", (leaf("VBZ"), *rest)), leaf("."))),))


def write_trees(path, count, seed):
    """Sentences of the toy grammar, bracketed, one a line."""
    rng = np.random.default_rng(seed)
    path.write_text("".join(f"{bracketed(_sentence(rng))}\n" for _ in range(count)))


def grammar(folder) -> Experiment:
    """The experiment that learns to parse them, its files written into `folder`."""
    for seed, (split, count) in enumerate({"train": 600, "dev": 48, "test": 24}.items()):
        write_trees(folder / f"{split}.mrg", count, seed)
    return Experiment(
        name="grammar",
        reports="nothing",
        task=Parsing(Trees(**{split: f"{split}.mrg" for split in ("train", "dev", "test")}, folder=str(folder))),
        model=config(
            vocab_size=48,
            target_vocab_size=24,
            num_layers=1,
            d_model=32,
            d_ff=64,
            num_heads=4,
            d_k=8,
            d_v=8,
            p_drop=0.0,
        ),
        optimizer=OptimizerConfig(warmup_steps=40),
        batching=BatchingConfig(tokens=1024, max_length=32, shapes=1),
        decoding=DecodingConfig(beam=2, extra_length=24, rows=4),
        mesh=MeshConfig(data=1),
        train_steps=200,
        log_every=100,
        evaluate_every=200,
        checkpoint_every=100,
        average=2,
    )
