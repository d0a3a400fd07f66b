"""Attention, several ways: against a NumPy reading and each other; positions and norms; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t import cost, decode, train
from t2t.batch import Sequences
from t2t.data.batching import fill
from t2t.errors import UserError
from t2t.experiment import get, override
from t2t.models import attention
from t2t.models.attention import Mask, attend, blocked, refusal, restricted
from t2t.models.transformer import Transformer, rotary_angles, rotated
from t2t.sharding import MeshConfig, make_mesh, on, row_shares, unboxed

# Rows of two sentences and padding, of one and padding, of one that fills the row, and of nothing.
LENGTH = 75
SEGMENTS = np.zeros((4, LENGTH), np.int32)
SEGMENTS[0, :41], SEGMENTS[0, 41:70], SEGMENTS[1, :33], SEGMENTS[2] = 1, 2, 1, 1


def drawn(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Q, K, V = drawn(4, LENGTH, 2, 4, seed=0), drawn(4, LENGTH, 2, 4, seed=1), drawn(4, LENGTH, 2, 5, seed=2)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def value_and_gradients(function, causal, span, q, k, v, of_queries, of_keys):
    """The result where queries are no padding, and the gradients of a sum of it in which no two numbers weigh alike."""

    def run(q, k, v):
        out = function(q, k, v, Mask(of_queries, of_keys, causal, span))
        out = jnp.where((of_queries != 0)[..., None, None], out, 0)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    gradients, out = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


def by_definition(causal, span, q, k, v, of_queries, of_keys):
    """Equation (1), one query after the other, over the keys that it may see."""
    near = reference.neighbourhood(q.shape[1], span, causal) if causal or span else None
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, own in enumerate(of_queries):
        for t in np.flatnonzero(own):
            seen = (of_keys[b] == own[t])[None] & (True if near is None else near[t])
            for h in range(q.shape[2]):
                one = reference.scaled_dot_product_attention(q[b, t, h][None], k[b, :, h], v[b, :, h], seen)
                out[b, t, h] = one[0][0]
    return out


def assert_same(found, expected, close=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=close)


@pytest.mark.parametrize(
    ("causal", "span"), [(False, 0), (True, 0), (False, 1), (False, 6), (False, 21), (True, 1), (True, 30)]
)
def test_each_way_is_equation_1_under_the_mask_in_value_and_gradient(causal, span, monkeypatch):
    """Lengths that no block divides; rows of several sentences, of padding in part and of padding alone."""
    monkeypatch.setattr(attention, "KEYS", 32)
    arguments = Q, K, V, SEGMENTS, SEGMENTS
    dense = value_and_gradients(attention.attention, causal, span, *arguments)
    np.testing.assert_allclose(dense[0], by_definition(causal, span, *map(np.asarray, arguments)), atol=1e-5)
    for function in [blocked, restricted] if span else [blocked]:
        found = value_and_gradients(function, causal, span, *arguments)
        assert_same(found, dense)


def test_keys_and_queries_may_be_of_two_lengths():
    arguments = Q[:, :20], K, V, SEGMENTS[:, :20], SEGMENTS
    found, dense = (value_and_gradients(f, False, 0, *arguments) for f in (blocked, attention.attention))
    np.testing.assert_allclose(dense[0], by_definition(False, 0, *map(np.asarray, arguments)), atol=1e-5)
    assert_same(found, dense)


@pytest.mark.parametrize("function", [attention.attention, blocked, restricted])
def test_bfloat16_is_near_float32(function):
    half = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    found = value_and_gradients(function, True, 9, *half, SEGMENTS, SEGMENTS)
    assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}
    dense = value_and_gradients(attention.attention, True, 9, Q, K, V, SEGMENTS, SEGMENTS)
    assert_same([x.astype("f") for x in found], dense, close=0.025)


def largest_array(function, length, **how):
    """Numbers in the largest array of a forward and backward pass, traced."""
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    heads = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    run = jax.vjp if how.pop("backward", True) else lambda f, *x: f(*x)

    def both(q, k, v, segments):
        out, back = run(lambda q, k, v: function(q, k, v, Mask(segments, segments, **how)), q, k, v)
        return back(out)

    return max(sizes(jax.make_jaxpr(both)(heads, heads, heads, segments).jaxpr))


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        for inner in cost._inside(equation.params):
            yield from sizes(inner)


def test_no_array_of_restricted_attention_grows_faster_than_the_length():
    for causal, width in ((False, 3 * 16), (True, 2 * 31)):
        found = [largest_array(restricted, length, span=32, causal=causal) for length in (31 * 16, 31 * 64)]
        assert found == [31 * 16 * width, 31 * 64 * width]
    assert largest_array(attention.attention, 31 * 64, span=32) == (31 * 64) ** 2


def temporaries(function, length):
    """Bytes that XLA takes for what lives within a forward and backward pass, compiled and not run."""
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    heads = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

    def loss(q, k, v, segments):
        return function(q, k, v, Mask(segments, segments, causal=True)).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(heads, heads, heads, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_32_k_tokens_fit_where_dense_attention_does_not():
    length = 32 * 1024
    half, whole = temporaries(blocked, length // 2), temporaries(blocked, length)
    assert whole < 2.1 * half and whole < 2**28
    assert temporaries(attention.attention, length) > 4 * length**2  # an array of weights, a head


@pytest.mark.parametrize(
    ("kernel", "span", "expected"),
    [
        ("dense", 0, "attention"),
        ("blocked", 0, "blocked"),
        ("fused", 0, "fused"),
        ("dense", 9, "restricted"),
        ("blocked", 9, "restricted"),
        ("fused", 9, "fused"),
    ],
)
def test_the_field_chooses(kernel, span, expected, monkeypatch):
    for name in ("attention", "blocked", "fused", "restricted"):
        monkeypatch.setattr(attention, name, lambda *_, name=name: name)
    assert attend(kernel, Q, K, V, Mask(SEGMENTS, SEGMENTS, True, span)) == expected


@pytest.mark.parametrize("kernel", ["dense", "blocked", "fused"])
def test_without_keys_the_result_is_zeros(kernel):
    """Over the sources of a task that has none: no block, and nothing for a platform's kernel to do."""
    empty, nobody = K[:, :0], SEGMENTS[:, :0]

    def total(q, k, v):
        return attend(kernel, q, k, v, Mask(SEGMENTS, nobody)).sum()

    assert not attend(kernel, Q, empty, V[:, :0], Mask(SEGMENTS, nobody)).any()
    gradients = jax.grad(total, argnums=(0, 1, 2))(Q, empty, V[:, :0])
    assert [x.shape for x in gradients] == [Q.shape, empty.shape, V[:, :0].shape] and not gradients[0].any()


# ------------------------------------------------------------------------------ The platform's kernel


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("cpu", "bfloat16", 64, 64, 0), "is a kernel of GPUs (cuDNN) and TPUs (Pallas), and this is cpu"),
        (("gpu", "float32", 64, 64, 0), "on a GPU is cuDNN's, which takes --model.dtype bfloat16, not float32"),
        (("gpu", "bfloat16", 64, 32, 0), "takes d_k = d_v, a multiple of 8, not 64 and 32"),
        (("gpu", "bfloat16", 12, 12, 0), "takes d_k = d_v, a multiple of 8, not 12 and 12"),
        (("gpu", "bfloat16", 64, 64, 9), "no restricted self-attention (--model.attention_span)"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(given, reason):
    assert reason in refusal(*given)


@pytest.mark.parametrize(
    "given",
    [
        ("gpu", "bfloat16", 64, 64, 0),
        ("tpu", "float32", 12, 20, 9),
    ],
)
def test_a_kernel_that_can_run_is_not_refused(given):
    assert refusal(*given) is None


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it runs on a GPU or a TPU")
def test_a_fused_model_is_refused_before_anything_is_compiled():
    experiment = override(get("quickstart"), {"model.attention": "fused"})
    with pytest.raises(
        UserError, match=r"--model.attention fused is a kernel of GPUs .* this is cpu; blocked computes"
    ):
        train.abstract_state(experiment)


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs a GPU or a TPU")
@pytest.mark.parametrize("causal", [False, True])
def test_the_platforms_kernel_is_equation_1_in_value_and_gradient(causal):
    half = [jnp.asarray(x[..., :4].repeat(2, -1), jnp.bfloat16) for x in (Q, K, V)]
    found, dense = (
        value_and_gradients(f, causal, 0, *half, SEGMENTS, SEGMENTS) for f in (attention.fused, attention.attention)
    )
    assert_same([x.astype("f") for x in found], [x.astype("f") for x in dense], close=0.05)


@pytest.mark.parametrize(("causal", "span"), [(False, 9), (True, 0)])
def test_a_tpus_kernel_run_as_plain_operations_is_equation_1(causal, span):
    """Each device its rows and heads: the kernel is no operation that XLA can split."""
    dense = value_and_gradients(attention.attention, causal, span, Q, K, V, SEGMENTS, SEGMENTS)
    with on(make_mesh(MeshConfig(data=2, fsdp=1, model=2))):
        assert row_shares() == 2
        run = functools.partial(attention._splash, interpret=True)
        assert_same(value_and_gradients(run, causal, span, Q, K, V, SEGMENTS, SEGMENTS), dense)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_what_a_gpus_kernel_is_given_makes_equation_1(causal, masked, monkeypatch):
    """JAX computes the same call without cuDNN. Rows of several sentences take an array of who sees whom."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *args, implementation, **how: plain(*args, **how, implementation="xla")
    )
    monkeypatch.setattr(attention, "MASKED", 1024 if masked else 1)
    rows = slice(None) if masked else slice(1, None)
    segments, given = SEGMENTS[rows], [x[rows, ..., :4] for x in (Q, K, V)]
    assert masked == (segments.max() > 1) and (segments == 0).any()

    # A function of its own: what is compiled under another MASKED is not run again.
    functions = functools.partial(attention._cudnn), attention.attention
    assert_same(*(value_and_gradients(f, causal, 0, *given, segments, segments) for f in functions))


def test_long_rows_of_several_sentences_are_refused_where_a_kernel_is_given_lengths():
    with pytest.raises(UserError, match=r"rows are longer than 1024, not 1025 .* train with --batching.packed false"):
        attention.check_rows("fused", "gpu", packed=True, length=1025)
    for kernel, platform, packed, length in (
        ("fused", "tpu", True, 2048),
        ("fused", "gpu", False, 2048),
        ("fused", "gpu", True, 1024),
        ("blocked", "gpu", True, 2048),
    ):
        attention.check_rows(kernel, platform, packed, length)


def test_a_row_of_several_sentences_is_not_one():
    rows = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 2, 2], [1, 0, 1], [0, 1, 1]])
    assert attention._one_sentence(jnp.asarray(rows)).tolist() == [True, True, True, False, False, False]


# ------------------------------------------------------------------------------ In the model

CHANGES = {
    "pre_ln": dict(norm="pre"),
    "rope": dict(positions="rope"),
    "restricted": dict(attention_span=3),
    "blocked": dict(attention="blocked"),
    "all": dict(norm="pre", positions="rope", attention_span=3, attention="blocked"),
    "learned, pre_ln": dict(norm="pre", positions="learned", max_length=40),
}
ALL = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
LONG = np.random.default_rng(0).integers(3, 17, 34).tolist()
PAIRS = [([5, 9, 3, 1], [7, 1]), ([4, 1], [11, 12, 13, 8, 1]), ([*LONG, 1], [*LONG[::-1], 1])]


@ALL
def test_logits_are_those_of_the_reading(changes, monkeypatch):
    """One longer than the windows of restricted attention, which are made smaller for it."""
    monkeypatch.setattr(attention, "LEAST", 4)
    config = toys.config(**changes)
    batch, params = toys.batch_of(PAIRS, length=36), toys.params(config)
    ours = jax.jit(config.build().apply)(params, batch.source, batch.target)
    theirs = toys.as_reference(params, config)
    for row, (source, target) in enumerate(PAIRS):
        expected = reference.decode(theirs, reference.encode(theirs, source), target)
        np.testing.assert_allclose(ours[row, : len(target)], expected, rtol=5e-4, atol=5e-4)


@ALL
def test_step_by_step_equals_teacher_forcing(changes):
    config = toys.config(**changes)
    model, params = config.build(), toys.params(config)
    batch = toys.batch_of(PAIRS[:2], rows=2)
    whole = model.apply(params, batch.source, batch.target)
    memory = model.apply(params, batch.source, method=Transformer.encode)
    cache = model.apply(params, batch.source, memory, 2, 9, method=Transformer.start)
    step = jax.jit(functools.partial(model.apply, method=Transformer.step))
    before = jnp.zeros((2, 2), jnp.int32)
    for t in range(5):
        logits, cache = step(params, cache, before)
        real = batch.target.segments[:, t] == 1
        for beam in range(2):
            np.testing.assert_allclose(logits[real, beam], whole[real, t], atol=1e-4)
        before = jnp.tile(batch.target.tokens[:, t : t + 1], (1, 2))


def test_what_a_beam_finds_has_the_score_that_teacher_forcing_gives_it():
    """Hypotheses that change beams take their neighbourhoods and positions along."""
    config = toys.config(vocab_size=5, **CHANGES["all"])
    model, params = config.build(), toys.params(config, scale=1.0)
    sources = [[3, 4, 2, 1], [4, 1], [2, 2, 3, 3, 4, 1]]
    found = decode.beam_search(model, params, fill(sources, 3, 8), jnp.array([8, 8, 8]), 3, 0.0, 8)
    for row, source in enumerate(sources):
        for tokens, score in zip(np.asarray(found.tokens[row]), found.scores[row], strict=True):
            batch = toys.batch_of([(source, tokens[tokens != 0].tolist())], rows=1)
            np.testing.assert_allclose(decode.forced_scores(model, params, batch)[0], score, atol=1e-4)


def test_a_mesh_changes_nothing(monkeypatch):
    """All at once: windows in self-attention, which blocks this small have at this length, and blocks in the other."""
    monkeypatch.setattr(attention, "LEAST", 1)
    config = toys.config(num_layers=1, num_heads=4, d_ff=16, vocab_size=18, **CHANGES["all"])
    batch, params = toys.batch_of([(s[-8:], t[-8:]) for s, t in PAIRS]), toys.params(config)

    def loss(params, batch):
        logits = config.build().apply(params, batch.source, batch.target)
        return jnp.where((batch.target.segments != 0)[..., None], jax.nn.log_softmax(logits), 0)[..., 3].sum()

    alone = jax.jit(jax.value_and_grad(loss))(params, batch)
    with on(make_mesh(MeshConfig(data=2, fsdp=2, model=2))):
        split = jax.jit(lambda *x: jax.value_and_grad(loss)(*x))(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), alone, split)


# ------------------------------------------------------------------------------ Positions and norms


def test_rotary_positions_are_relative():
    """A query's product with a key is that of two others as far apart, and not that of two which are not."""
    q, k = drawn(1, 1, 2, 8, seed=3), drawn(1, 1, 2, 8, seed=4)
    at = lambda x, position: rotated(x, rotary_angles(jnp.array([[position]]), 8))  # noqa: E731
    product = lambda t, s: (at(q, t) * at(k, s)).sum(-1)  # noqa: E731
    for t, s in ((3, 0), (7, 7), (5, 9)):
        np.testing.assert_allclose(product(t + 200, s + 200), product(t, s), atol=1e-4)
    assert np.abs(product(3, 0) - product(4, 0)).min() > 0.01
    np.testing.assert_allclose(np.linalg.norm(at(q, 77)), np.linalg.norm(q), rtol=1e-5)


def test_a_rotary_model_sees_no_absolute_positions():
    """All positions later by as many: nothing changes. With sinusoids it does."""
    batch = toys.batch_of(PAIRS[:2])
    for positions, close in (("rope", True), ("sinusoid", False)):
        config = toys.config(positions=positions)
        params = toys.params(config)

        def hidden(shift, config=config, params=params):
            embedded = Sequences(batch.source.tokens, batch.source.segments, batch.source.positions + shift)
            with_room = Sequences(*(np.pad(x, ((0, 0), (0, 12))) for x in embedded))
            return config.build().apply(params, with_room, method="encode")[:2, :2]

        assert np.allclose(hidden(0), hidden(9), atol=1e-4) == close


def test_weights_of_the_default_model_have_the_names_that_they_had():
    names = lambda **changes: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(unboxed(toys.params(toys.config(**changes))))
    }
    usual = names()
    assert {f"params/decoder/residual_{n}/{w}" for n in (1, 2, 3) for w in ("scale", "bias")} < usual
    assert len(usual) == 1 + (4 + 4 + 4) + (8 + 4 + 6)
    assert names(positions="rope", attention_span=3, attention="blocked") == usual
    norms = {f"params/{stack}_norm/{w}" for stack in ("encoder", "decoder") for w in ("scale", "bias")}
    assert names(norm="pre") == usual | norms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(positions="rope", d_k=5), "--model.d_k must be even for rotary positions, not 5"),
        (
            dict(p_attention=0.1, attention="blocked"),
            "--model.p_attention drops attention weights, .* not blocked and 0",
        ),
        (dict(p_attention=0.1, attention_span=4), "--model.p_attention drops attention weights, .* not dense and 4"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        toys.config(**changes)


# ------------------------------------------------------------------------------ Cost


def test_costs_are_those_of_the_model_and_not_of_the_way_it_is_computed():
    """But for memory: a kernel keeps what blocks keep, which is no weights, float32 in each head of six attentions."""
    kernels = ("dense", "blocked", "fused")
    quickstart = override(get("quickstart"), {"mesh.data": 1})
    found = [cost.cost(override(quickstart, {"model.attention": name}), None) for name in kernels]
    assert len({each["flops_per_step"] for each in found}) == 1
    dense, blocks, kernel = (each["memory_per_device"]["activations"] for each in found)
    batch = found[0]["batch"]
    assert kernel == blocks <= dense - 6 * 4 * batch["rows"] * 4 * batch["length"] ** 2


def test_flops_of_restricted_attention_are_linear_in_the_length():
    """Two products of each query with the keys of the blocks that it is given."""

    def count(length):
        shape, segments = jnp.zeros((1, length, 1, 8)), jnp.ones((1, length), jnp.int32)
        run = lambda *x: restricted(*x, Mask(segments, segments, span=32))  # noqa: E731
        return cost.flops(jax.make_jaxpr(run)(shape, shape, shape).jaxpr)

    assert count(4096) == pytest.approx(2 * count(2048), rel=1e-3)
    products = 2 * 2 * 4096 * 48 * 8
    assert products < count(4096) < 2 * products
