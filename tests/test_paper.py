"""What the paper says, point by point: each number and each equation typed here anew, not taken from t2t."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t import train
from t2t.batch import Sequences
from t2t.data.batching import evaluation_batches
from t2t.data.pipeline import TrainingBatches
from t2t.decode import DecodingConfig, decode
from t2t.evaluate import perplexity
from t2t.experiment import differences, get, override, registered
from t2t.loss import cross_entropy
from t2t.models.dropout import Dropout
from t2t.models.transformer import Embedding, TransformerConfig, sinusoids

CONFIG = toys.config()  # N 2, V 17, D 8, F 20, H 3, k 4, v 5
MODEL, PARAMS = CONFIG.build(), toys.params(CONFIG)
THEIRS = toys.as_reference(PARAMS, CONFIG)
PAIRS = [([5, 9, 3, 1], [7, 1]), ([4, 1], [11, 12, 13, 8, 1]), ([16, 3, 3, 8, 2, 1], [6, 5, 1])]
BATCH = toys.batch_of(PAIRS)
EOS = 1


def outputs_of(kind, **how):
    """Logits, and what every module of a class gave, by its path; in the order of its calls."""
    logits, kept = MODEL.apply(
        PARAMS,
        BATCH.source,
        BATCH.target,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: isinstance(module, kind) and method == "__call__",
        **how,
    )
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(kept["intermediates"]):
        keys = [p.key for p in path if hasattr(p, "key")]
        if keys[-1] == "__call__":
            found.setdefault("/".join(keys[:-1]), []).append(np.asarray(value))
    return logits, found, kept["intermediates"]


# ------------------------------------------------------------------------------ Section 3: the weights


def test_the_weights_are_those_of_the_paper_and_no_others():
    """Two norms a layer of the encoder, three of the decoder, none after a stack; biases in the feed-forward alone."""
    n, v, d, f, h, dk, dv = 2, 17, 8, 20, 3, 4, 5
    attention = {"query": (n, d, h, dk), "key": (n, d, h, dk), "value": (n, d, h, dv), "output": (n, h, dv, d)}
    expected = {"embedding/table": (v, d)}
    for stack, attentions, norms in (
        ("encoder", ["self_attention"], 2),
        ("decoder", ["self_attention", "cross_attention"], 3),
    ):
        for name, (part, shape) in itertools.product(attentions, attention.items()):
            expected[f"{stack}/{name}/{part}/weight"] = shape
        expected[f"{stack}/feed_forward/inner/weight"] = (n, d, f)
        expected[f"{stack}/feed_forward/inner/bias"] = (n, f)
        expected[f"{stack}/feed_forward/outer/weight"] = (n, f, d)
        expected[f"{stack}/feed_forward/outer/bias"] = (n, d)
        for i in range(1, norms + 1):
            expected[f"{stack}/residual_{i}/scale"] = (n, d)
            expected[f"{stack}/residual_{i}/bias"] = (n, d)
    leaves = jax.tree_util.tree_leaves_with_path(PARAMS["params"])
    assert {"/".join(p.key for p in path): leaf.shape for path, leaf in leaves} == expected
    assert sum(name.endswith("/scale") for name in expected) == 2 + 3
    assert [name for name, shape in expected.items() if v in shape] == ["embedding/table"]


def test_embeddings_are_multiplied_by_the_root_of_d_model_and_positions_are_added():
    _, found, _ = outputs_of(Embedding)
    assert {path: len(calls) for path, calls in found.items()} == {"embedding": 2}
    table = np.asarray(PARAMS["params"]["embedding"]["table"], np.float64)
    source, target = found["embedding"]
    for row, (tokens, truth) in enumerate(PAIRS):
        for t, token in enumerate(tokens):
            expected = table[token] * 8**0.5 + position(t, 8)
            np.testing.assert_allclose(source[row, t], expected, atol=1e-5)
        for t, token in enumerate(truth[:-1]):
            expected = table[token] * 8**0.5 + position(t + 1, 8)
            np.testing.assert_allclose(target[row, t + 1], expected, atol=1e-5)


def test_the_decoder_begins_with_the_zero_vector():
    """Its first input is the position alone, whatever the target and whatever the weights."""
    _, found, _ = outputs_of(Embedding)
    np.testing.assert_array_equal(found["embedding"][1][:3, 0], [[0, 1, 0, 1, 0, 1, 0, 1]] * 3)


@pytest.mark.parametrize(("token", "where"), [(9, "source"), (12, "target"), (14, "softmax")])
def test_one_matrix_serves_source_target_and_softmax(token, where):
    row = np.random.default_rng(0).normal(size=8)
    table = PARAMS["params"]["embedding"]["table"].at[token].add(row)
    changed = {"params": {**PARAMS["params"], "embedding": {"table": table}}}
    theirs = {**THEIRS, "embedding": np.asarray(table)}
    before, after = (MODEL.apply(p, BATCH.source, BATCH.target) for p in (PARAMS, changed))
    memory, moved = (MODEL.apply(p, BATCH.source, method="encode") for p in (PARAMS, changed))
    assert np.array_equal(memory, moved) == (where != "source")
    for i, (source, target) in enumerate(PAIRS):
        expected = reference.decode(theirs, reference.encode(theirs, source), target)
        np.testing.assert_allclose(after[i, : len(target)], expected, rtol=2e-4, atol=2e-4)
        others = np.delete(np.asarray(before - after)[i, : len(target)], token, axis=1)
        seen = token in source or token in target
        assert others.any() == seen
        assert (before - after)[i, : len(target), token].all()  # every position's logit of that token has moved


# ------------------------------------------------------------------------------ Section 3.5: positions


def position(pos, d_model):
    """One row of PE: sine, cosine, sine, ..."""
    angles = [pos / 10000 ** (2 * i / d_model) for i in range(d_model // 2)]
    return np.array([f(angle) for angle in angles for f in (math.sin, math.cos)])


def test_sinusoids_by_hand():
    """With d_model 4 the angles are pos and pos / 100."""
    ours = sinusoids(101, 4)
    np.testing.assert_allclose(ours[0], [0, 1, 0, 1], atol=0)
    np.testing.assert_allclose(ours[1], [0.84147098, 0.54030231, 0.00999983, 0.99995000], atol=1e-7)
    np.testing.assert_allclose(ours[100], [-0.50636564, 0.86231887, 0.84147098, 0.54030231], atol=1e-7)


@pytest.mark.parametrize("pos", [0, 1, 100])
@pytest.mark.parametrize("i", [0, 1, 255])
def test_sinusoids_of_base(pos, i):
    angle = pos * {0: 1.0, 1: 0.9646616199, 255: 1.0366329284e-4}[i]  # 10000^(-2 i / 512)
    np.testing.assert_allclose(sinusoids(101, 512)[pos, 2 * i], math.sin(angle), atol=1e-7)
    np.testing.assert_allclose(sinusoids(101, 512)[pos, 2 * i + 1], math.cos(angle), atol=1e-7)


# ------------------------------------------------------------------------------ Section 5.4: dropout


def dropped_forward(masks, p_drop, source, target):
    """The reference with dropout at the paper's places; masks(place, layer) says what is kept, [length D]."""
    drop = lambda x, *place: np.where(masks(*place)[: len(x)], x / (1 - p_drop), 0)  # noqa: E731
    attend, norm, ffn = reference.multi_head_attention, reference.layer_norm, reference.feed_forward
    x = drop(reference.embed(THEIRS, source), "source", 0)
    all_to_all = np.ones((len(source), len(source)), bool)
    for n, w in enumerate(THEIRS["encoder"]):
        x = norm(x + drop(attend(w["self"], x, x, all_to_all), "encoder/residual_1", n), w["norm1"])
        x = norm(x + drop(ffn(w["ffn"], x), "encoder/residual_2", n), w["norm2"])
    y = drop(reference.embed(THEIRS, [0, *target[:-1]]), "target", 0)
    causal = np.tril(np.ones((len(target), len(target)), bool))
    to_memory = np.ones((len(target), len(source)), bool)
    for n, w in enumerate(THEIRS["decoder"]):
        y = norm(y + drop(attend(w["self"], y, y, causal), "decoder/residual_1", n), w["norm1"])
        y = norm(y + drop(attend(w["cross"], y, x, to_memory), "decoder/residual_2", n), w["norm2"])
        y = norm(y + drop(ffn(w["ffn"], y), "decoder/residual_3", n), w["norm3"])
    return y @ np.asarray(THEIRS["embedding"], np.float64).T


def test_dropout_stands_where_the_paper_has_it():
    """With the masks that were drawn, NumPy gives the same logits when it drops at the paper's places and no other."""
    p_drop = 0.1
    logits, found, kept = outputs_of(Dropout, train=True, rngs={"dropout": jax.random.key(3)})
    source, target = found.pop("embedding/dropout")
    # On attention weights it stands too, and does nothing: no knob of the base model turns it on.
    passed = {path.removesuffix("/dropout"): found.pop(path) for path in [*found] if "attention" in path}
    drawn = {"source": source[None], "target": target[None]}
    drawn.update({path.rpartition("/")[0]: value for path, (value,) in found.items()})
    assert sorted(drawn) == sorted(
        ["source", "target", *(f"encoder/residual_{i}" for i in (1, 2)), *(f"decoder/residual_{i}" for i in (1, 2, 3))]
    )
    for place, values in drawn.items():  # what is dropped is zero; every layer draws anew
        assert values.shape == (1 if place in ("source", "target") else 2, 4, 8, 8)
        real = BATCH.source if place == "source" or place.startswith("encoder") else BATCH.target
        share = (values == 0)[:, real.segments != 0].mean()
        assert 0.01 < share < 0.3
        assert len(values) == 1 or not np.array_equal(values[0] == 0, values[1] == 0)
    for row, pair in enumerate(PAIRS):
        expected = dropped_forward(lambda place, n, row=row: drawn[place][n, row] != 0, p_drop, *pair)
        np.testing.assert_allclose(logits[row, : len(pair[1])], expected, rtol=2e-4, atol=2e-4)
    for stack, name in (
        ("encoder", "self_attention"),
        ("decoder", "self_attention"),
        ("decoder", "cross_attention"),
    ):
        (weights,) = kept[stack][name]["weights"]
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(passed.pop(f"{stack}/{name}")[0], weights)
    assert not passed


# ------------------------------------------------------------------------------ Section 5.4: loss and perplexity


def loss_of(probabilities, truth, epsilon):
    logits = jnp.log(jnp.array(probabilities))[None, None] + 3.0  # any constant falls out
    return cross_entropy(logits, jnp.array([[truth]]), jnp.ones((1, 1), jnp.int32), epsilon)


def test_label_smoothing_by_hand():
    """The truth has 1 - 0.1; the three others 0.1 / 3 each, padding's entry among them."""
    halves = [0.125, 0.25, 0.5, 0.125]  # -log2: 3, 2, 1, 3
    expected = math.log(2) * (0.9 * 1 + 0.1 / 3 * (3 + 2 + 3))
    found = loss_of(halves, 2, 0.1)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], 0.80867171, rtol=1e-6)
    np.testing.assert_allclose(found["nll"], math.log(2), rtol=1e-6)


def test_the_best_smoothed_loss_is_the_entropy():
    wanted = [0.1 / 4, 0.1 / 4, 0.9, 0.1 / 4, 0.1 / 4]
    entropy = -sum(p * math.log(p) for p in wanted)
    np.testing.assert_allclose(loss_of(wanted, 2, 0.1)["loss"], entropy, rtol=1e-5)


def test_perplexity_is_unsmoothed_and_per_word_piece():
    """EOS counts, padding does not; over several batches and shapes."""
    rng = np.random.default_rng(1)
    pairs = [*PAIRS, ([6, 1], [*map(int, rng.integers(2, 17, 19)), 1]), ([*map(int, rng.integers(2, 17, 20)), 1], [1])]
    total = count = 0
    for source, target in pairs:
        logits = reference.decode(THEIRS, reference.encode(THEIRS, source), target)
        total += reference.nll(logits, target)
        count += len(target)
    batches = [batch for _, batch in evaluation_batches(*zip(*pairs, strict=True), tokens=32)]
    assert len(batches) > 2
    found = perplexity(MODEL, PARAMS, batches)
    assert found["tokens"] == count == 2 + 5 + 3 + 20 + 1
    np.testing.assert_allclose(found["perplexity"], math.exp(total / count), rtol=1e-4)
    np.testing.assert_allclose(found["loss"], total / count, rtol=1e-4)


def test_training_follows_the_gradient_of_the_smoothed_loss_per_target_token(toy):
    """Adam's first moment after one step is 0.1 of the gradient: held to finite differences of the reference."""
    experiment = override(dataclasses.replace(toy, model=CONFIG), {"model.p_drop": 0.0})
    adam = experiment.optimizer.build(8)
    state = train.TrainState(jnp.zeros((), jnp.int32), PARAMS, adam.init(PARAMS))
    after, sums = jax.jit(train.train_step, static_argnums=0)(experiment, state, BATCH)

    def mean_loss(table):
        model = {**THEIRS, "embedding": table}
        logits = [(reference.decode(model, reference.encode(model, s), t), t) for s, t in PAIRS]
        return sum(reference.smoothed_loss(x, t, 0.1) for x, t in logits) / (2 + 5 + 3)

    table = np.asarray(THEIRS["embedding"], np.float64)
    np.testing.assert_allclose(sums["loss"] / sums["tokens"], mean_loss(table), rtol=1e-4)
    moment = after.optimizer[0].mu["params"]["embedding"]["table"]
    for entry in [(0, 0), (1, 2), (5, 0), (7, 3), (9, 7), (14, 4)]:  # padding, EOS, both sides, source, nowhere
        nudge = np.zeros_like(table)
        nudge[entry] = 1e-5
        slope = (mean_loss(table + nudge) - mean_loss(table - nudge)) / 2e-5
        np.testing.assert_allclose(moment[entry], 0.1 * slope, rtol=2e-3, atol=1e-6)


# ------------------------------------------------------------------------------ Section 5.3: Adam and its rate

PAPERS = [name for name in registered() if get(name).table]
TRANSFORMERS = [name for name, e in registered().items() if type(e.model) is TransformerConfig]


@pytest.mark.parametrize("name", PAPERS)
def test_constants_of_adam(name):
    adam = get(name).optimizer
    assert (adam.beta1, adam.beta2, adam.epsilon) == (0.9, 0.98, 1e-9)
    warmup = 16_000 if name.startswith("wsj") else 4000  # for parsing it was chosen anew: see test_table_4
    assert (adam.warmup_steps, adam.scale, adam.clip_norm) == (warmup, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "d_model", "step", "literal"),
    [
        ("ende_base", 512, 1, 1.746928e-7),
        ("ende_base", 512, 4_000, 6.987712e-4),
        ("ende_base", 512, 100_000, 1.397542e-4),
        ("ende_big", 1024, 1, 1.235265e-7),
        ("ende_big", 1024, 4_000, 4.941059e-4),
        ("ende_big", 1024, 100_000, 9.882118e-5),
    ],
)
def test_learning_rate(name, d_model, step, literal):
    formula = d_model**-0.5 * min(step**-0.5, step * 4000**-1.5)
    np.testing.assert_allclose(formula, literal, rtol=1e-6)
    experiment = get(name)
    np.testing.assert_allclose(experiment.optimizer.rate(step, experiment.model.d_model), formula, rtol=1e-5)


@pytest.mark.parametrize(("name", "rate"), [("ende_base", 1.746928e-7), ("ende_big", 1.235265e-7)])
def test_the_first_update_is_the_rate_of_step_1(name, rate):
    adam, gradient = get(name).optimizer.build(get(name).model.d_model), np.float32([3.0, -0.5])
    updates, _ = adam.update(gradient, adam.init(gradient))
    np.testing.assert_allclose(updates, [-rate, rate], rtol=1e-4)


# ------------------------------------------------------------------------------ EOS


def test_batches_carry_sentences_that_end_in_eos(toy):
    prepared = train.prepare(toy.task, train.Sizes(toy.model.vocab_size), lambda _: None)
    batches = TrainingBatches(prepared, toy.batching, toy.seed)
    for side in batches[0]:
        assert (side.tokens[side.segments == 0] == 0).all()
        sentences = 0
        for tokens, segments, positions in zip(*side, strict=True):
            for segment in range(1, segments.max() + 1):
                sentence = tokens[segments == segment]
                assert sentence[-1] == EOS and len(sentence) > 3
                assert not {0, EOS} & set(sentence[:-1].tolist())
                assert positions[segments == segment].tolist() == list(range(len(sentence)))
                sentences += 1
        assert sentences > 10
    for text, ids in zip(["ten cat", "sea"], prepared.vocabulary.source.encode(["ten cat", "sea"]), strict=True):
        assert ids[-1] == EOS and ids.count(EOS) == 1 and prepared.vocabulary.source.decode(ids) == text


# ------------------------------------------------------------------------------ Section 6.1: search


@functools.cache
def six_pieces():
    config = toys.config(vocab_size=6)
    params = toys.params(config, scale=1.0)
    return config.build(), params, toys.as_reference(params, config)


@functools.cache
def all_outputs(source, limit):
    """Every output of at most `limit` tokens, EOS among them, and its log-probability by the reference."""
    theirs = six_pieces()[2]
    memory = reference.encode(theirs, list(source))
    found = {}
    for length in range(limit):
        for tokens in itertools.product((2, 3, 4, 5), repeat=length):
            target = [*tokens, EOS]
            logits = reference.decode(theirs, memory, target)
            found[tokens] = -reference.nll(logits, target)
    return found


def test_a_wide_beam_finds_every_output_with_its_penalised_score():
    """The length in the penalty counts EOS; no output is longer than its input by more than `extra_length`."""
    model, params, _ = six_pieces()
    sources = [(3, 5, EOS), (4, EOS)]
    everything = 4**3 * 5  # what there is to choose from when the fourth token comes
    config = DecodingConfig(beam=everything, alpha=0.6, extra_length=1, rows=2)
    found = dict(decode(model, params, [list(s) for s in sources], config))
    for i, source in enumerate(sources):
        limit = len(source) + 1
        wanted = {y: p / ((5 + len(y) + 1) / 6) ** 0.6 for y, p in all_outputs(source, limit).items()}
        assert len(wanted) == sum(4**n for n in range(limit))
        ours = {tuple(h.tokens): h.score for h in found[i]}
        assert ours.keys() == wanted.keys()
        np.testing.assert_allclose([ours[y] for y in wanted], list(wanted.values()), atol=5e-4)
        best = sorted(wanted, key=lambda y: -wanted[y])[:10]
        assert [tuple(h.tokens) for h in found[i]][:10] == best


class Constant:
    """A model that gives the same probabilities at every step, and counts the steps."""

    cache_axes = {"index": ""}

    def __init__(self, probabilities):
        self.log_probs = np.log(probabilities)
        self.steps = []

    def apply(self, params, *arguments, method):
        if method == "encode":
            return arguments[0].tokens
        if method == "start":
            return {"index": jnp.zeros((), jnp.int32)}
        cache, tokens = arguments
        jax.debug.callback(lambda index: self.steps.append(int(index)), cache["index"])
        logits = jnp.broadcast_to(jnp.float32(self.log_probs), (*tokens.shape, len(self.log_probs)))
        return logits, {"index": cache["index"] + 1}


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("extra", [0, 3, 50])
def test_output_is_at_most_so_much_longer_than_the_input(beam, extra):
    sources = [[4, 1], [3, 5, 4, 1], [2, 1]]
    model = Constant([1e-9, 1e-30, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1])  # beyond the fourth place, EOS cannot end
    found = dict(decode(model, {}, sources, DecodingConfig(beam=beam, extra_length=extra)))
    for i, source in enumerate(sources):
        assert {len(h.tokens) for h in found[i]} == {len(source) + extra}


@pytest.mark.parametrize("beam", [1, 4])
def test_search_ends_early_when_it_can(beam):
    """As soon as the plain reading of it, long before input + 50."""
    probabilities = [1e-9, 0.9, 0.05, 0.03, 0.02]
    asked = []

    def following(prefix):
        asked.append(len(prefix))
        return np.log(probabilities)

    theirs = reference.beam_search(following, beam, EOS, 0.6, 2 + 50)
    model = Constant(probabilities)
    ((_, ours),) = decode(model, {}, [[4, 1]], DecodingConfig(beam=beam))
    jax.effects_barrier()
    assert ours[0].tokens == [] and theirs[0][0] == (EOS,)
    np.testing.assert_allclose([h.score for h in ours], [score for _, score in theirs], atol=1e-4)
    assert max(model.steps) == max(asked) < 10


# ------------------------------------------------------------------------------ Table 2

BASE = {
    "model.num_layers": 6,
    "model.d_model": 512,
    "model.d_ff": 2048,
    "model.num_heads": 8,
    "model.d_k": 64,
    "model.d_v": 64,
    "model.p_drop": 0.1,
    "model.positions": "sinusoid",
    "label_smoothing": 0.1,
    "train_steps": 100_000,
    "checkpoint_every": 1_500,
    "average": 5,
    "optimizer.warmup_steps": 4_000,
    "batching.tokens": 25_000,
    "decoding.beam": 4,
    "decoding.alpha": 0.6,
    "decoding.extra_length": 50,
    "final_evaluation": "test",
    "table": 2,
}
BIG = {
    **BASE,
    "model.d_model": 1024,
    "model.d_ff": 4096,
    "model.num_heads": 16,
    "train_steps": 300_000,
    "checkpoint_every": 600,
    "average": 20,
}
TABLE_2 = {  # pieces, languages, P_drop, BLEU, parameters, FLOPs, hours
    "ende_base": (BASE, 37_000, "de", 0.1, 27.3, 65, 3.3e18, 12),
    "ende_big": (BIG, 37_000, "de", 0.3, 28.4, 213, 2.3e19, 3.5 * 24),
    "enfr_base": (BASE, 32_000, "fr", 0.1, 38.1, None, 3.3e18, 12),
    "enfr_big": (BIG, 32_000, "fr", 0.1, 41.8, None, 2.3e19, 3.5 * 24),
}


def knob(experiment, path):
    return functools.reduce(getattr, path.split("."), experiment)


@pytest.mark.parametrize("name", TABLE_2)
def test_table_2(name):
    experiment = get(name)
    values, pieces, target, p_drop, bleu, parameters, flops, hours = TABLE_2[name]
    expected = {**values, "model.vocab_size": pieces, "model.p_drop": p_drop}
    assert {path: knob(experiment, path) for path in expected} == expected
    assert (experiment.task.source, experiment.task.target) == ("en", target)
    paper = experiment.paper
    assert (paper.bleu, paper.parameters, paper.train_flops, paper.hours) == (bleu, parameters, flops, hours)


def test_tables_hold_these_experiments_and_no_others():
    tables = {name: get(name).table for name in registered() if get(name).table}
    others = {**dict.fromkeys(TABLE_2, 2), **dict.fromkeys(TABLE_4, 4)}
    assert tables == {**others, **{f"table3_{row}": 3 for row in TABLE_3}}


# ------------------------------------------------------------------------------ Table 3

TABLE_3 = {  # what differs, PPL, BLEU, millions of parameters where printed
    "base": ("", 4.92, 25.8, 65),
    "a_h1": ("num_heads=1 d_k=512 d_v=512", 5.29, 24.9, None),
    "a_h4": ("num_heads=4 d_k=128 d_v=128", 5.00, 25.5, None),
    "a_h16": ("num_heads=16 d_k=32 d_v=32", 4.91, 25.8, None),
    "a_h32": ("num_heads=32 d_k=16 d_v=16", 5.01, 25.4, None),
    "b_dk16": ("d_k=16", 5.16, 25.1, 58),
    "b_dk32": ("d_k=32", 5.01, 25.4, 60),
    "c_n2": ("num_layers=2", 6.11, 23.7, 36),
    "c_n4": ("num_layers=4", 5.19, 25.3, 50),
    "c_n8": ("num_layers=8", 4.88, 25.5, 80),
    "c_d256": ("d_model=256 d_k=32 d_v=32", 5.75, 24.5, 28),
    "c_d1024": ("d_model=1024 d_k=128 d_v=128", 4.66, 26.0, 168),
    "c_ff1024": ("d_ff=1024", 5.12, 25.4, 53),
    "c_ff4096": ("d_ff=4096", 4.75, 26.2, 90),
    "d_drop0": ("p_drop=0.0", 5.77, 24.6, None),
    "d_drop02": ("p_drop=0.2", 4.95, 25.5, None),
    "d_ls0": ("label_smoothing=0.0", 4.67, 25.3, None),
    "d_ls02": ("label_smoothing=0.2", 5.47, 25.7, None),
    "e_learned": ("positions=learned", 4.92, 25.7, None),
    # A checkpoint every ten minutes is one every 600 steps of a second.
    "big": (
        "d_model=1024 d_ff=4096 num_heads=16 p_drop=0.3 train_steps=300000 checkpoint_every=600",
        4.33,
        26.4,
        213,
    ),
}
RUNS = ("label_smoothing", "train_steps", "checkpoint_every")  # these are the experiment's, the others the model's
WORDS = {"name", "reports", "base"}  # what an experiment is called, and the paper's numbers, tested by themselves


def changed(a, b):
    found = differences(a, b)
    return {path: new for path, (_, new) in found.items() if path not in WORDS and not path.startswith("paper")}


@pytest.mark.parametrize("row", TABLE_3)
def test_table_3(row):
    text, ppl, bleu, millions = TABLE_3[row]
    pairs = [part.split("=") for part in text.split()]
    wanted = {key if key in RUNS else f"model.{key}": value for key, value in pairs}
    experiment, base = get(f"table3_{row}"), get("table3_base")
    assert {path: str(value) for path, value in changed(base, experiment).items()} == wanted
    paper = experiment.paper
    assert (paper.perplexity, paper.bleu, paper.parameters, paper.train_flops) == (ppl, bleu, millions, None)
    assert experiment.reports.startswith(f"Table 3{f' ({row[0].upper()})' if row[1] == '_' else ''}: ")


def test_base_of_table_3_is_base_of_table_2_without_averaging_on_newstest2013():
    assert changed(get("ende_base"), get("table3_base")) == {"table": 3, "final_evaluation": "dev", "average": 1}


# ------------------------------------------------------------------------------ Table 4

TABLE_4 = {"wsj_only": (16_000, 91.3), "wsj_semi": (32_000, 92.7)}  # pieces, F1 on section 23


@pytest.mark.parametrize("name", TABLE_4)
def test_table_4(name):
    e, base = get(name), get("ende_base")
    pieces, f1 = TABLE_4[name]
    assert (e.model.vocab_size, e.model.num_layers, e.model.d_model, e.paper.f1) == (pieces, 4, 1024, f1)
    assert (e.decoding.beam, e.decoding.alpha, e.decoding.extra_length) == (21, 0.3, 300)
    # "All other parameters remained unchanged from the English-to-German base": also h, and so d_k = d_model / h.
    for path in ("model.num_heads", "model.d_ff", "model.positions", "label_smoothing", "train_steps", "average"):
        assert knob(e, path) == knob(base, path), path
    assert e.model.d_k == e.model.d_v == e.model.d_model // e.model.num_heads
    # Chosen on section 22, and not printed: those of the authors' first code.
    assert (e.model.p_drop, e.model.p_attention, e.optimizer.warmup_steps) == (0.2, 0.2, 16_000)
    assert e.model.target_vocab_size == 2**9 and e.batching.max_length == 512
    assert e.final_evaluation == "test" and e.task.constrained


def test_attention_weights_are_dropped_in_parsing_alone():
    dropping = {name for name in TRANSFORMERS if get(name).model.p_attention}
    assert dropping == set(TABLE_4)


# ------------------------------------------------------------------------------ Parameters


@functools.cache
def parameters(model):
    """Of a model, under shapes alone."""
    row = Sequences(*[jax.ShapeDtypeStruct((1, 8), np.int32)] * 3)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.build().init, jax.random.key(0), row, row)))


def by_the_paper(v, n, d, f, h, dk, dv, learned=0, final_norms=0):
    """Section 3 in numbers: three attentions, two feed-forwards and five norms a layer of both stacks."""
    attention = d * h * dk + d * h * dk + d * h * dv + h * dv * d
    feed_forward = d * f + f + f * d + d
    norm = d + d
    return v * d + learned * d + n * (3 * attention + 2 * feed_forward + 5 * norm) + final_norms * norm


SIZE_OF_BASE = 63_045_632  # with 37,000 pieces
COUNTS = {
    **dict.fromkeys(("ende_base", "table3_base", "table3_a_h1", "table3_a_h4", "table3_a_h16"), SIZE_OF_BASE),
    **{f"table3_{row}": SIZE_OF_BASE for row in ("a_h32", "d_drop0", "d_drop02", "d_ls0", "d_ls02")},
    "multi30k_ende": 2_086_912,
    **{f"modern_{name}": 915_456 for name in ("rope", "restricted", "blocked")},
    "modern_pre_ln": 915_968,
    "modern_learned": 1_046_528,
    "multi30k_rope": 2_086_912,
    "multi30k_pre_ln": 2_087_424,
    "multi30k_learned": 2_217_984,
    **dict.fromkeys(("recall_transformer", "recall_restricted"), 168_448),
    "own_base": 60_485_632,
    "own_small": 7_568_384,
    "quickstart": 915_456,
    "wsj_only": 100_859_904,
    "wsj_semi": 117_243_904,
    "craft": 3_717_888,
    "parse_quickstart": 1_187_840,
    "enfr_base": 60_485_632,
    "ende_big": 214_171_648,
    "enfr_big": 209_051_648,
    "table3_b_dk16": 55_967_744,
    "table3_b_dk32": 58_327_040,
    "table3_c_n2": 33_644_544,
    "table3_c_n4": 48_345_088,
    "table3_c_n8": 77_746_176,
    "table3_c_d256": 26_816_512,
    "table3_c_d1024": 163_815_424,
    "table3_c_ff1024": 50_450_432,
    "table3_c_ff4096": 88_236_032,
    "table3_e_learned": 63_569_920,
    "table3_big": 214_171_648,
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parameters(name):
    m = get(name).model
    learned = m.max_length if m.positions == "learned" else 0
    pieces = m.vocab_size + m.target_vocab_size
    expected = by_the_paper(
        pieces, m.num_layers, m.d_model, m.d_ff, m.num_heads, m.d_k, m.d_v, learned, 2 * (m.norm == "pre")
    )
    same = dataclasses.replace(m, p_drop=0.1, dtype="float32")  # has no part in it
    assert parameters(same) == expected == COUNTS[name]


MILLIONS = {  # with the authors' vocabulary
    "base": 65.1,
    "b_dk16": 58.0,
    "b_dk32": 60.4,
    "c_n2": 35.7,
    "c_n4": 50.4,
    "c_n8": 79.8,
    "c_d256": 27.8,
    "c_d1024": 167.9,
    "c_ff1024": 52.5,
    "c_ff4096": 90.3,
    "big": 218.2,
}


@pytest.mark.parametrize(("row", "millions"), MILLIONS.items())
def test_parameters_round_to_the_printed_ones_with_the_authors_vocabulary(row, millions):
    """Their table of embeddings had 40,960 rows. Big is 218 million by the paper's own sizes, and printed as 213.

    With d_ff 1024 there are 52.478 million: the printed 53 is 52.5 rounded once more.
    """
    model = dataclasses.replace(get(f"table3_{row}").model, vocab_size=40_960, p_drop=0.1, dtype="float32")
    printed = TABLE_3[row][3]
    found = parameters(model) / 1e6
    assert round(found, 1) == millions
    assert math.floor(millions + 0.5) == (218 if row == "big" else printed)
    assert (round(found) == printed) == (row not in ("big", "c_ff1024"))


def test_every_printed_count_is_tested():
    printed = {name for name in PAPERS if get(name).table == 3 and get(name).paper.parameters}
    assert printed == {f"table3_{row}" for row in MILLIONS}
