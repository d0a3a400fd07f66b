"""The weights of a Transformer under the names and in the order that Hugging Face's MarianMTModel has, and back.

Marian's sinusoids are all sines before all cosines, ours take turns: whatever has the axis `D` is permuted. Its linear
maps are [out in]. Its layer normalisation adds another ε, and its embedding is not always multiplied by √d_model: both
are made up for by scaling weights, which changes nothing of what is computed.
"""

import math
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from t2t.models.transformer import TransformerConfig

EPSILON = 1e-5  # ε of Marian's layer normalisation

Tensors = dict[str, np.ndarray]


def _linear(ours: str, theirs: str, axes: str) -> dict[str, tuple[str, str]]:
    return {f"{ours}/weight": (f"{theirs}.weight", axes), f"{ours}/bias": (f"{theirs}.bias", axes.split(">")[1])}


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
    return {
        **_linear(f"{ours}/query", f"{theirs}.q_proj", "D>Hk"),
        **_linear(f"{ours}/key", f"{theirs}.k_proj", "D>Hk"),
        **_linear(f"{ours}/value", f"{theirs}.v_proj", "D>Hv"),
        **_linear(f"{ours}/output", f"{theirs}.out_proj", "Hv>D"),
    }


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
    return {f"{ours}/scale": (f"{theirs}.weight", "D"), f"{ours}/bias": (f"{theirs}.bias", "D")}


# Our name -> Marian's, and our axes, of a linear map from those before ">" to those after it.
FEED_FORWARD = {
    **_linear("feed_forward/inner", "fc1", "D>F"),
    **_linear("feed_forward/outer", "fc2", "F>D"),
}
ENCODER = {
    **_attention("self_attention", "self_attn"),
    **_norm("residual_1", "self_attn_layer_norm"),
    **FEED_FORWARD,
    **_norm("residual_2", "final_layer_norm"),
}
DECODER = {
    **_attention("self_attention", "self_attn"),
    **_norm("residual_1", "self_attn_layer_norm"),
    **_attention("cross_attention", "encoder_attn"),
    **_norm("residual_2", "encoder_attn_layer_norm"),
    **FEED_FORWARD,
    **_norm("residual_3", "final_layer_norm"),
}
FINAL = {**_norm("encoder_norm", "model.encoder.layer_norm"), **_norm("decoder_norm", "model.decoder.layer_norm")}
STACKS = {"encoder": ENCODER, "decoder": DECODER}
SELF = (("self_attention/query", "self_attention/key", "self_attention/value"), "self_attention/output")
CROSS = (("cross_attention/query",), "cross_attention/output")
FORWARD = (("feed_forward/inner",), "feed_forward/outer")
SUB_LAYERS = {"encoder": (SELF, FORWARD), "decoder": (SELF, CROSS, FORWARD)}  # what reads the stream, what adds to it


def layers(config: TransformerConfig, params: Any) -> Tensors:
    """The weights of all layers as Marian's; attention that has no biases gets zeros."""
    sizes, order, tensors = _sizes(config), _order(config), {}
    for stack, names in STACKS.items():
        flat = _with_epsilon(stack, _flat(params[stack]), math.sqrt(EPSILON / config.norm_epsilon))
        for ours, (theirs, axes) in names.items():
            for i in range(depth(config, stack)):
                x = flat[ours][i] if ours in flat else np.zeros([sizes[a] for a in axes], np.float32)
                tensors[f"model.{stack}.layers.{i}.{theirs}"] = _theirs(x, axes, order)
    return tensors


def from_layers(config: TransformerConfig, tensors: Tensors) -> dict[str, Any]:
    """The inverse of `layers`, of tensors whose ε is that of `config`: {"encoder": ..., "decoder": ...}.

    With pre-LN, which `layers` cannot write, also the norms after the last layers.

    Raises:
        KeyError: a tensor is missing. ValueError: one has another shape.
    """
    sizes, order, found = _sizes(config), np.argsort(_order(config)), {}
    for stack, names in STACKS.items():
        flat = {}
        for ours, (theirs, axes) in names.items():
            each = [tensors[f"model.{stack}.layers.{i}.{theirs}"] for i in range(depth(config, stack))]
            flat[ours] = np.stack([_ours(x, axes, sizes, order) for x in each])
        if not config.bias:
            flat = {ours: x for ours, x in flat.items() if "attention" not in ours or not ours.endswith("bias")}
        found[stack] = unflatten_dict(flat, sep="/")
    final = FINAL if config.norm == "pre" else {}
    norms = {ours: _ours(tensors[theirs], axes, sizes, order) for ours, (theirs, axes) in final.items()}
    return {**found, **unflatten_dict(norms, sep="/")}


def depth(config: TransformerConfig, stack: str) -> int:
    """How many layers the "encoder" or the "decoder" has."""
    return config.num_layers if stack == "encoder" else config.decoder_depth


def has_biases(config: TransformerConfig, tensors: Tensors) -> bool:
    """Whether a projection of attention has a bias that is not zero."""
    names = {theirs for stack in STACKS.values() for ours, (theirs, _) in stack.items() if "attention" in ours}
    biases = [name for name in names if name.endswith(".bias") and "_proj" in name]
    return any(x.any() for name, x in tensors.items() if name.split(".", 4)[-1] in biases)


def table(config: TransformerConfig, x: np.ndarray) -> np.ndarray:
    """An embedding [V D], of ours, as Marian's."""
    return np.asarray(x, np.float32)[:, _order(config)]


def from_table(config: TransformerConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `table`."""
    return np.asarray(x, np.float32)[:, np.argsort(_order(config))]


def without_scale(config: TransformerConfig, params: dict[str, Any]) -> dict[str, Any]:
    """The same model for weights whose embedding is meant to be taken as it stands, not times √d_model.

    Its matrix is made smaller by that; for the logits, where they are by the same matrix, the decoder's output is made
    larger.
    """
    root = np.float32(math.sqrt(config.d_model))
    flat = _flat(params)
    for name in flat:
        if name.endswith("table"):
            flat[name] = flat[name] / root
    last = "decoder_norm" if config.norm == "pre" else "decoder/residual_3"
    for name in (f"{last}/scale", f"{last}/bias"):
        if config.projection == "shared":
            factors = np.ones_like(flat[name])
            factors.reshape(-1, config.d_model)[-1] = root
            flat[name] = flat[name] * factors
    return unflatten_dict(flat, sep="/")


def _flat(tree: Any) -> Tensors:
    return {name: np.asarray(x, np.float32) for name, x in flatten_dict(tree, sep="/").items()}


def _sizes(config: TransformerConfig) -> dict[str, int]:
    return {"D": config.d_model, "F": config.d_ff, "H": config.num_heads, "k": config.d_k, "v": config.d_v}


def _order(config: TransformerConfig) -> np.ndarray:
    """Which of our dimensions is Marian's first, second, ...: the sines, then the cosines."""
    return np.r_[0 : config.d_model : 2, 1 : config.d_model : 2]


def _theirs(x: np.ndarray, axes: str, order: np.ndarray) -> np.ndarray:
    letters = axes.replace(">", "")
    if "D" in letters:
        x = x.take(order, letters.index("D"))
    return x.reshape(math.prod(x.shape[: axes.index(">")]), -1).T.copy() if ">" in axes else x.reshape(-1)


def _ours(x: np.ndarray, axes: str, sizes: dict[str, int], order: np.ndarray) -> np.ndarray:
    letters = axes.replace(">", "")
    shape = [math.prod(sizes[a] for a in side) for side in reversed(axes.split(">"))]
    if list(x.shape) != shape:
        raise ValueError(f"{list(x.shape)} in place of {shape}")
    x = np.asarray(x, np.float32).T.reshape([sizes[a] for a in letters])
    return x.take(order, letters.index("D")) if "D" in letters else x


def _with_epsilon(stack: str, flat: Tensors, factor: float) -> Tensors:
    """The same layers for an ε that is `factor`² times as large.

    LayerNorm of `factor` x with the larger ε is LayerNorm of x with the smaller: so the stream between the first norm
    and the last is `factor` times what it was. What comes in and goes out stays as it is. So the first norm keeps the
    larger ε, about 1e-5 of the variance of an embedding and its position.
    """
    flat = dict(flat)

    def scale(name: str, by: np.ndarray) -> None:
        if name in flat:
            flat[name] = flat[name] * by.reshape(-1, *(1,) * (flat[name].ndim - 1)).astype(np.float32)

    for place, (reads, adds) in enumerate(SUB_LAYERS[stack], 1):
        before = np.full(len(flat["residual_1/scale"]), factor)
        after = before.copy()
        if place == 1:
            before[0] = 1.0
        if place == len(SUB_LAYERS[stack]):
            after[-1] = 1.0
        for name in reads:
            scale(f"{name}/weight", 1 / before)
        for name in (f"{adds}/weight", f"{adds}/bias"):
            scale(name, before)
        for name in ("scale", "bias"):
            scale(f"residual_{place}/{name}", after)
    return flat
