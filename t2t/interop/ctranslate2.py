"""A run's weights as a folder that `ctranslate2.Translator` loads: the engine many deploy translation models with.

An optional part: `pip install 't2t[ctranslate2]'`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from t2t.batch import EOS, PAD, UNK
from t2t.data.vocabulary import Vocabularies
from t2t.errors import UserError
from t2t.models import Architecture
from t2t.models.transformer import LAYER_NORM_EPSILON, TransformerConfig, sinusoids

LONGEST = 2048  # rows of the table of sinusoids: tokens that a sentence may have there

Quantization = Literal["float32", "float16", "int8"]


def write(
    model: Architecture, params: Any, vocabulary: Vocabularies, folder: Path, quantization: Quantization = "float32"
) -> None:
    """Writes the weights `params` of `model`, and the pieces of its vocabulary, into the new folder `folder`.

    Raises:
        UserError: ctranslate2 is not installed, cannot express the model, or `folder` is there already.
    """
    specs = _specs()
    config = _expressible(model)
    if folder.exists():
        raise UserError(f"{folder} is there already")
    spec = specs.TransformerSpec.from_config((config.num_layers,) * 2, config.num_heads, pre_norm=False)
    _fill(spec, config, params["params"])
    tokens = vocabulary.source.pieces([*range(config.vocab_size)])
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.unk_token, spec.config.eos_token = tokens[UNK], tokens[EOS]
    spec.config.bos_token = spec.config.decoder_start_token = tokens[PAD]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = LAYER_NORM_EPSILON
    spec.validate()
    spec.optimize(quantization=quantization)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    spec.save(str(unfinished))
    unfinished.rename(folder)


def _specs() -> ModuleType:
    try:
        return importlib.import_module("ctranslate2.specs")
    except ImportError:
        raise UserError("CTranslate2's folders are written with ctranslate2: pip install 't2t[ctranslate2]'") from None


def _expressible(model: Architecture) -> TransformerConfig:
    if type(model) is not TransformerConfig:  # one that derives from it is another architecture
        raise UserError(f"CTranslate2 has Transformers of encoder and decoder only, no {type(model).__name__}")
    if model.norm == "pre" or model.positions == "rope" or model.attention_span:
        found = f"norm {model.norm}, positions {model.positions}, attention_span {model.attention_span}"
        raise UserError(f"CTranslate2 is given the paper's Transformer only, not {found}")
    if model.target_vocab_size:
        raise UserError("CTranslate2 takes runs with a shared vocabulary, not parsers")
    if not model.d_k == model.d_v == model.d_model / model.num_heads:
        sizes = f"d_k {model.d_k}, d_v {model.d_v}, {model.num_heads} heads, d_model {model.d_model}"
        raise UserError(f"CTranslate2 has d_k = d_v = d_model / heads only, not {sizes}")
    return model


def _fill(spec: Any, config: TransformerConfig, params: Any) -> None:
    """Sets every weight; CTranslate2 has those of linear maps as [out in], queries, keys and values joined."""
    params = _numpy(params)
    table = params["embedding"]["table"]
    without_padding = np.where(np.arange(len(table))[:, None] == PAD, 0, table)  # as input PAD is the zero vector
    positions = params["embedding"].get("positions", sinusoids(LONGEST, config.d_model))
    for side, embeddings in ((spec.encoder, spec.encoder.embeddings[0]), (spec.decoder, spec.decoder.embeddings)):
        embeddings.weight = without_padding
        side.position_encodings.encodings = positions
    spec.decoder.projection.weight = table
    for i in range(config.num_layers):
        layer = _layer(params["encoder"], i)
        _attention(spec.encoder.layer[i].self_attention, layer["self_attention"], layer["residual_1"], [3])
        _feed_forward(spec.encoder.layer[i].ffn, layer["feed_forward"], layer["residual_2"])
        layer = _layer(params["decoder"], i)
        _attention(spec.decoder.layer[i].self_attention, layer["self_attention"], layer["residual_1"], [3])
        _attention(spec.decoder.layer[i].attention, layer["cross_attention"], layer["residual_2"], [1, 2])
        _feed_forward(spec.decoder.layer[i].ffn, layer["feed_forward"], layer["residual_3"])


def _numpy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _numpy(part) for name, part in tree.items()}
    return np.asarray(tree, np.float32)


def _layer(stacked: Any, i: int) -> Any:
    if isinstance(stacked, dict):
        return {name: _layer(part, i) for name, part in stacked.items()}
    return stacked[i]


def _attention(spec: Any, weights: Any, norm: Any, joined: list[int]) -> None:
    """`joined`: how many of queries, keys and values each of CTranslate2's linear maps has."""
    width = len(weights["query"]["weight"])
    maps = [weights[name]["weight"].reshape(width, -1).T for name in ("query", "key", "value")]
    for linear, begin, size in zip(spec.linear, np.cumsum([0, *joined]), joined, strict=False):
        linear.weight = np.concatenate(maps[begin : begin + size])
    spec.linear[-1].weight = weights["output"]["weight"].reshape(-1, width).T.copy()
    _norm(spec.layer_norm, norm)


def _feed_forward(spec: Any, weights: Any, norm: Any) -> None:
    for linear, name in ((spec.linear_0, "inner"), (spec.linear_1, "outer")):
        linear.weight, linear.bias = weights[name]["weight"].T.copy(), weights[name]["bias"]
    _norm(spec.layer_norm, norm)


def _norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = norm["scale"], norm["bias"]
