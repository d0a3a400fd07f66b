"""An independent reading, in NumPy, of what MarianMTModel computes from a folder of its own."""

import json
import math

import numpy as np

from t2t.interop import safetensors


def logits(folder, source, target):
    """Source and decoder input, lists of Marian's ids, to logits [T V]."""
    about = json.loads((folder / "config.json").read_text())
    w = {name: x.astype(np.float64) for name, x in safetensors.load(folder / "model.safetensors").items()}
    shared = w.get("model.shared.weight")
    tables = [w.get(f"model.{side}.embed_tokens.weight", shared) for side in ("encoder", "decoder")]
    memory = embedded(about, tables[0][source])
    for i in range(about["encoder_layers"]):
        memory = layer(about, w, f"model.encoder.layers.{i}", memory, None)
    y = embedded(about, tables[1][target])
    for i in range(about["decoder_layers"]):
        y = layer(about, w, f"model.decoder.layers.{i}", y, memory)
    return y @ w.get("lm_head.weight", tables[1]).T + w["final_logits_bias"]


def embedded(about, x):
    half = about["d_model"] // 2
    angles = np.arange(len(x))[:, None] / 10_000.0 ** (np.arange(half) / half)
    return x * (math.sqrt(about["d_model"]) if about["scale_embedding"] else 1) + np.hstack(
        [np.sin(angles), np.cos(angles)]
    )


def layer(about, w, name, x, memory):
    x = norm(w, f"{name}.self_attn_layer_norm", x + attention(about, w, f"{name}.self_attn", x, x, memory is not None))
    if memory is not None:
        added = attention(about, w, f"{name}.encoder_attn", x, memory, False)
        x = norm(w, f"{name}.encoder_attn_layer_norm", x + added)
    inner = ACTIVATIONS[about["activation_function"]](linear(w, f"{name}.fc1", x))
    return norm(w, f"{name}.final_layer_norm", x + linear(w, f"{name}.fc2", inner))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}


def attention(about, w, name, x, over, causal):
    heads = about["encoder_attention_heads"]

    def split(x):
        return x.reshape(len(x), heads, -1).swapaxes(0, 1)

    q, k, v = (split(linear(w, f"{name}.{part}_proj", each)) for part, each in (("q", x), ("k", over), ("v", over)))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:])) == 1, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return linear(w, f"{name}.out_proj", mixed.swapaxes(0, 1).reshape(len(x), -1))


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
