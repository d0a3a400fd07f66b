"""What the layouts of other engines have no place for: refused in one line, before anything is written."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t2t.data.linearisation import TreeVocabulary
from t2t.data.vocabulary import Vocabularies
from t2t.errors import UserError
from t2t.models import Architecture
from t2t.models.transformer import TransformerConfig

# The knobs that other engines follow, or that change nothing of what a trained model computes.
FOLLOWED = {"vocab_size", "target_vocab_size", "num_layers", "decoder_layers", "d_model", "d_ff", "num_heads", "d_k"}
FOLLOWED |= {
    "d_v",
    "activation",
    "bias",
    "output_bias",
    "projection",
    "start",
    "norm_epsilon",
    "p_drop",
    "p_attention",
    "max_length",
    "dtype",
    "unroll",
    "attention",
}


def check(
    model: Architecture, vocabulary: Vocabularies, whose: str, also: Mapping[str, tuple[Any, ...]] = {}
) -> TransformerConfig:
    """The model, if the engine `whose` can express it; `also`: values of knobs beside `FOLLOWED` and the defaults.

    Raises:
        UserError: it cannot; says what it has not.
    """
    if type(model) is not TransformerConfig:  # one that derives from it is another architecture
        raise UserError(f"{whose} has Transformers of encoder and decoder only, no {type(model).__name__}")
    if isinstance(vocabulary.target, TreeVocabulary):
        raise UserError(f"{whose} takes runs that translate, not parsers")
    for field in dataclasses.fields(model):
        value, known = getattr(model, field.name), (field.default, *also.get(field.name, ()))
        if field.name not in FOLLOWED and value not in known:
            there = " or ".join(map(str, known))
            raise UserError(f"{whose} has --model.{field.name} {there} only, not {value}")
    if not model.d_k == model.d_v == model.d_model / model.num_heads:
        sizes = f"d_k {model.d_k}, d_v {model.d_v}, {model.num_heads} heads, d_model {model.d_model}"
        raise UserError(f"{whose} has d_k = d_v = d_model / heads only, not {sizes}")
    return model
