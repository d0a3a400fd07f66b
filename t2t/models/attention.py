"""Section 3.2.1: attention itself, between the projections that section 3.2.2 puts around it; four ways to one result.

`attention` is equation (1) as it stands, with an array of weights [B H T S]. `restricted` has arrays of T times the
neighbourhood, `blocked` none that grow faster than T, and `fused` no scores (but for short rows on a GPU, flags of who
sees whom). Three letters beside those of `t2t.sharding` stand in
this file alone: `c` blocks of positions, `t` and `s` queries and keys within what one block sees.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2t.errors import UserError
from t2t.models.products import einsum, product
from t2t.sharding import by_heads

NEVER = float(jnp.finfo(jnp.float32).min)  # the score of a key that a query may not see; finite, so never a NaN
KEYS = 128  # keys of a block that `blocked` looks at together
LEAST = 16  # queries of the smallest block of `restricted`: smaller products are slow everywhere
MASKED = 1024  # positions of the longest rows for which cuDNN is given an array of who sees whom, [B 1 T S]
EIGHT = 8  # positions that rows for cuDNN are a multiple of
LANES = 128  # positions of the smallest block of a TPU's kernel
WIDEST = 512  # and of the largest


class Mask(NamedTuple):
    """Who may see whom: a query sees the keys of its own segment, and none after itself if `causal`.

    With a `span` of r it sees but a neighbourhood of r of them (section 4, restricted self-attention). A value, not an
    array of flags: only a kernel that needs [B 1 T S] makes it.
    """

    query_segments: jax.Array  # int32 [B T], 0 = padding
    key_segments: jax.Array  # int32 [B S], 0 = padding, which nobody sees
    causal: bool = False
    span: int = 0  # positions: r of Table 1; 0: all

    @property
    def window(self) -> tuple[int | None, int | None]:
        """How many keys before its own place, and after it, a query sees; None: all.

        The neighbourhood of r places is centred on the query's, with one more before than after where r is even. Where
        nothing later may be seen it is the last r places, the query's own among them.
        """
        if self.causal:
            return (self.span - 1 if self.span else None), 0
        return (self.span // 2, (self.span - 1) // 2) if self.span else (None, None)

    def dense(self) -> jax.Array:
        """True where a query may see a key, [B 1 T S]."""
        places = jnp.arange(self.query_segments.shape[1]), jnp.arange(self.key_segments.shape[1])
        return allowed(self.window, self.query_segments, self.key_segments, *places)[:, None]


def allowed(
    window: tuple[int | None, int | None],
    of_queries: jax.Array,
    of_keys: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """True where a query may see a key: segments [... T] and [... S], places [... T] and [... S] -> [... T S]."""
    own, other = of_queries[..., :, None], of_keys[..., None, :]
    seen = (own == other) & (other != 0)
    before, after = window
    if before is None and after is None:
        return seen
    distance = queries[..., :, None] - keys[..., None, :]
    seen &= True if before is None else distance <= before
    return seen & (True if after is None else distance >= -after)


def _unchanged(weights: jax.Array) -> jax.Array:
    return weights


def attend(
    kernel: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    change: Callable[[jax.Array], jax.Array] = _unchanged,
) -> jax.Array:
    """Equation (1) by "dense", "blocked" or "fused"; arguments and result are those of `attention`.

    A mask with a span has `restricted` for the first two. The weights pass through `change` where `attention` itself
    has them. Without keys, as over sources in a task that has none, the result is zeros.
    """
    if kernel != "dense" and not k.shape[1]:
        return jnp.zeros((*q.shape[:3], v.shape[-1]), v.dtype)
    if kernel == "fused":
        return fused(q, k, v, mask)
    if mask.span:
        return restricted(q, k, v, mask, change)
    return blocked(q, k, v, mask) if kernel == "blocked" else attention(q, k, v, mask, change)


# ------------------------------------------------------------------------------ Dense


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, change: Callable[[jax.Array], jax.Array] = _unchanged
) -> jax.Array:
    """3.2.1, equation (1): softmax(q kᵀ / √d_k) v.

    q [B T H k], k [B S H k], v [B S H v] -> [B T H v]. The weights [B H T S] pass through `change`.
    A query that may see nothing (padding) gets the plain mean of the values, never a NaN.
    """
    scores = product("BTHk,BSHk->BHTS", "float32", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask.dense(), scores, NEVER)
    weights = change(jax.nn.softmax(scores))
    return product("BHTS,BSHv->BTHv", v.dtype.name, weights.astype(v.dtype), v)


# ------------------------------------------------------------------------------ Restricted (section 4)


def restricted(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, change: Callable[[jax.Array], jax.Array] = _unchanged
) -> jax.Array:
    """Restricted self-attention: equation (1) over a neighbourhood of r keys, in O(r T) time and memory.

    Queries go in blocks as wide as the neighbourhood reaches to a side; each sees its own block and those beside it.
    Where that would be all of a short row it is `attention`, which is then the cheaper. q, k [B T H k], v [B T H v] ->
    [B T H v]. What a query gets that may see nothing (padding) is a number and nothing more.
    """
    before, after = mask.window
    assert before is not None and after is not None  # there is a span
    width, beside = max(before, after, LEAST), (1, 1 if after else 0)
    length = q.shape[1]
    if length <= width * (1 + sum(beside)):
        return attention(q, k, v, mask, change)
    blocks = -(-length // width)
    own = functools.partial(_cut, blocks=blocks, width=width)
    near = lambda x: _with_neighbours(own(x), *beside)  # noqa: E731
    scores = product("BctHk,BcsHk->BHcts", "float32", own(q), near(k))
    # A place as counted within the block: that of keys begins a block earlier. Beyond either end is padding.
    places = jnp.arange(width), jnp.arange(width * (1 + sum(beside))) - width * beside[0]
    seen = allowed(mask.window, own(mask.query_segments), near(mask.key_segments), *places)[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores / math.sqrt(q.shape[-1]), NEVER))
    out = product("BHcts,BcsHv->BctHv", v.dtype.name, weights.astype(v.dtype), near(v))
    return out.reshape(q.shape[0], blocks * width, *out.shape[3:])[:, :length]


def _cut(x: jax.Array, blocks: int, width: int) -> jax.Array:
    """X [B T ...] in blocks, filled up with zeros: [B c t ...]."""
    return _filled(x, blocks * width).reshape(x.shape[0], blocks, width, *x.shape[2:])


def _filled(x: jax.Array, length: int) -> jax.Array:
    """X [B T ...] with zeros after it, up to `length` positions."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _with_neighbours(x: jax.Array, before: int, after: int) -> jax.Array:
    """Each block of x [B c t ...] behind the one before it and in front of the one after it, if asked: [B c s ...]."""
    blocks = x.shape[1]
    around = jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate([around[:, i : i + blocks] for i in range(1 + before + after)], axis=2)


# ------------------------------------------------------------------------------ Blocked


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Equation (1) in memory linear in T: block after block of keys, the weights made again for the gradient.

    The softmax is taken as keys come (Milakov and Gimelshein 2018), the gradient as in Dao et al. 2022. q [B T H k],
    k [B S H k], v [B S H v] -> [B T H v]; a query that may see nothing (padding) gets zeros.
    """
    return _blocked(mask.window, q, k, v, mask.query_segments, mask.key_segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(window: Any, q: jax.Array, k: jax.Array, v: jax.Array, of_queries: jax.Array, of_keys: jax.Array) -> Any:
    return _blocked_forward(window, q, k, v, of_queries, of_keys)[0]


def _blocked_forward(
    window: Any, q: jax.Array, k: jax.Array, v: jax.Array, of_queries: jax.Array, of_keys: jax.Array
) -> Any:
    rows, length, heads, _ = q.shape

    def add(carry: Any, block: Any) -> tuple[Any, None]:
        largest, total, out = carry
        keys, values, *where = block
        scores, seen = _scores(window, q, keys, of_queries, *where)
        new = jnp.maximum(largest, scores.max(-1))
        weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0)
        shrink = jnp.exp(largest - new)
        part = einsum("BHTS,BSHv->BHTv", weights.astype(v.dtype), values, "float32")
        return (new, total * shrink + weights.sum(-1), out * shrink[..., None] + part), None

    zeros = jnp.zeros((rows, heads, length))
    begin = zeros + NEVER, zeros, jnp.zeros((rows, heads, length, v.shape[-1]))
    (largest, total, out), _ = jax.lax.scan(add, begin, _key_blocks(k, v, of_keys))
    total = jnp.where(total == 0, 1, total)  # of a query that sees nothing
    out = jnp.einsum("BHTv->BTHv", out / total[..., None]).astype(v.dtype)
    return out, (q, k, v, of_queries, of_keys, out, largest + jnp.log(total))


def _blocked_backward(window: Any, kept: Any, d_out: jax.Array) -> Any:
    q, k, v, of_queries, of_keys, out, log_z = kept
    scale = 1 / math.sqrt(q.shape[-1])
    mean = einsum("BTHv,BTHv->BHT", d_out, out, "float32")

    def add(dq: jax.Array, block: Any) -> tuple[jax.Array, Any]:
        keys, values, *where = block
        scores, seen = _scores(window, q, keys, of_queries, *where)
        weights = jnp.where(seen, jnp.exp(scores - log_z[..., None]), 0)
        d_weights = einsum("BTHv,BSHv->BHTS", d_out, values, "float32")
        d_scores = (weights * (d_weights - mean[..., None]) * scale).astype(q.dtype)
        dk = einsum("BHTS,BTHk->BSHk", d_scores, q, q.dtype)
        dv = einsum("BHTS,BTHv->BSHv", weights.astype(d_out.dtype), d_out, d_out.dtype)
        return dq + einsum("BHTS,BSHk->BTHk", d_scores, keys, "float32"), (dk, dv)

    dq, (dk, dv) = jax.lax.scan(add, jnp.zeros(q.shape), _key_blocks(k, v, of_keys))
    together = lambda x: jnp.moveaxis(x, 0, 1).reshape(k.shape[0], -1, *x.shape[3:])[:, : k.shape[1]]  # noqa: E731
    return dq.astype(q.dtype), together(dk).astype(k.dtype), together(dv).astype(v.dtype), None, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _key_blocks(k: jax.Array, v: jax.Array, of_keys: jax.Array) -> tuple[jax.Array, ...]:
    """Keys, values, segments and places of keys, blocks of KEYS of them in front: [c B S ...], places [c S]."""
    size = min(KEYS, k.shape[1])
    blocks = -(-k.shape[1] // size)
    cut = lambda x: jnp.moveaxis(_cut(x, blocks, size), 1, 0)  # noqa: E731
    return cut(k), cut(v), cut(of_keys), jnp.arange(blocks * size).reshape(blocks, size)


def _scores(
    window: Any, q: jax.Array, keys: jax.Array, of_queries: jax.Array, of_keys: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of all queries q [B T H k] for a block of keys [B S H k]: [B H T S], NEVER where unseen, and what is seen."""
    scores = einsum("BTHk,BSHk->BHTS", q, keys, "float32") / math.sqrt(q.shape[-1])
    seen = allowed(window, of_queries, of_keys, jnp.arange(q.shape[1]), places)[:, None]
    return jnp.where(seen, scores, NEVER), seen


# ------------------------------------------------------------------------------ Fused


def fused(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Equation (1) by the platform's own kernel: cuDNN's on a GPU, JAX's Pallas splash attention on a TPU.

    q [B T H k], k [B S H k], v [B S H v] -> [B T H v]; a query of padding gets zeros.

    Raises:
        UserError: it cannot run here, and why; raised while the model is traced, before anything is compiled.
    """
    platform = jax.default_backend()
    if reason := refusal(platform, str(q.dtype), q.shape[-1], v.shape[-1], mask.span):
        raise UserError(f"--model.attention fused {reason}; blocked computes the same on any device")
    out = _splash(q, k, v, mask) if platform == "tpu" else _cudnn(q, k, v, mask)
    return jnp.where((mask.query_segments != 0)[..., None, None], out, 0)


def refusal(platform: str, dtype: str, d_k: int, d_v: int, span: int) -> str | None:
    """Why a platform's kernel cannot do it, in words that follow its name; None: it can."""
    if platform == "tpu":
        return None
    if platform != "gpu":
        return f"is a kernel of GPUs (cuDNN) and TPUs (Pallas), and this is {platform}"
    if dtype != "bfloat16":
        return f"on a GPU is cuDNN's, which takes --model.dtype bfloat16, not {dtype}"
    if d_k != d_v or d_k % 8:
        return f"on a GPU is cuDNN's, which takes d_k = d_v, a multiple of 8, not {d_k} and {d_v}"
    if span:
        return "on a GPU is cuDNN's, which has no restricted self-attention (--model.attention_span)"
    return None


def check_rows(kernel: str, platform: str, packed: bool, length: int) -> None:
    """Raises UserError when rows hold several sentences, which the kernel cannot tell apart in rows of this length."""
    if kernel == "fused" and platform == "gpu" and packed and length > MASKED:
        raise UserError(
            f"--model.attention fused on a GPU is cuDNN's, which takes one sentence a row where rows are longer than "
            f"{MASKED}, not {length} (--batching.max_length): train with --batching.packed false, or with blocked"
        )


def _filled_up(
    multiple: int, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask
) -> tuple[jax.Array, jax.Array, jax.Array, Mask]:
    """All of these with padding after them, so that both lengths are multiples of a number."""
    queries, keys = (-(-x.shape[1] // multiple) * multiple for x in (q, k))
    of_queries, of_keys = _filled(mask.query_segments, queries), _filled(mask.key_segments, keys)
    filled = mask._replace(query_segments=of_queries, key_segments=of_keys)
    return _filled(q, queries), _filled(k, keys), _filled(v, keys), filled


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Short rows come with an array of who sees whom, long ones, which would make it large, with lengths."""
    try:
        masked = max(q.shape[1], k.shape[1]) <= MASKED
        return _cudnn_masked(q, k, v, mask) if masked else _cudnn_by_lengths(q, k, v, mask)
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"--model.attention fused cannot run on this GPU: {error}") from None


def _cudnn_masked(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Rows of any number of sentences. The array is [B 1 T S], and no scores beside it."""
    q, k, v, filled = _filled_up(EIGHT, q, k, v, mask)
    out = jax.nn.dot_product_attention(q, k, v, mask=filled.dense(), implementation="cudnn")
    return out[:, : mask.query_segments.shape[1]]


def _cudnn_by_lengths(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """A row is one sentence; one of several gives NaN, and not a wrong number."""
    lengths = [(segments != 0).sum(-1, dtype=jnp.int32) for segments in (mask.query_segments, mask.key_segments)]
    whole = jnp.stack([_one_sentence(mask.query_segments), _one_sentence(mask.key_segments)]).all(0)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=mask.causal,
        query_seq_lengths=jnp.maximum(lengths[0], 1),  # an empty row has one: a softmax over nothing is a NaN
        key_value_seq_lengths=jnp.maximum(lengths[1], 1),
        implementation="cudnn",
    )
    return jnp.where(whole[:, None, None, None], out, jnp.nan)


def _one_sentence(segments: jax.Array) -> jax.Array:
    """Whether each row of segments [B T] is a sentence from its beginning, then padding: [B]."""
    return (segments <= 1).all(-1) & (segments[:, 1:] <= segments[:, :-1]).all(-1)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, interpret: bool = False) -> jax.Array:
    """Each device computes its rows and heads; `interpret` has the kernel run as plain operations, anywhere."""
    q, k, v, filled = _filled_up(LANES, q, k, v, mask)
    run = functools.partial(_splash_rows, mask.window, interpret)
    out = by_heads(run, ("BTHk", "BSHk", "BSHv", "BT", "BS"), "BTHv")(q / math.sqrt(q.shape[-1]), k, v, *filled[:2])
    return out[:, : mask.query_segments.shape[1]]


def _splash_rows(
    window: Any, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, of_queries: jax.Array, of_keys: jax.Array
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # only here: it takes long to import

    shape = q.shape[1], k.shape[1]
    one = splash.FullMask(shape) if window == (None, None) else splash.LocalMask(shape, window, 0)
    of_q, of_k = (max(n for n in (LANES, 2 * LANES, WIDEST) if size % n == 0) for size in shape)
    kernel: Any = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([one] * q.shape[2]),
        block_sizes=splash.BlockSizes(of_q, of_k, of_k, of_q, of_k, of_k, of_q, of_k),
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(of_queries, of_keys))
    return out.swapaxes(1, 2).astype(v.dtype)
