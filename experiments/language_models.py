"""Models that only decode: of text alone, and beside the Transformers of encoder and decoder, on the same pairs.

Five layers of self-attention and feed-forward have as many parameters as two of an encoder and two of a decoder, within
a thousandth: at the sizes here a layer's attention has as many as its feed-forward.
"""

import dataclasses
from typing import Any

from experiments.multi30k import MULTI30K_ENDE
from experiments.quickstart import QUICKSTART
from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Embedded
from t2t.data.language_modelling import LanguageModelling
from t2t.experiment import Experiment, register
from t2t.models.language_model import LanguageModelConfig


def decoder_only(transformer: Any, num_layers: int) -> LanguageModelConfig:
    """A model of a Transformer's sizes, in one stack."""
    return LanguageModelConfig(**{**dataclasses.asdict(transformer), "num_layers": num_layers})


BASELINE_LANGUAGE_MODEL = QUICKSTART.variant(
    "baseline_language_model",
    "nothing in the paper: quickstart as language modelling, without an encoder",
    {"model": decoder_only(QUICKSTART.model, 5)},
)

MULTI30K_LANGUAGE_MODEL = MULTI30K_ENDE.variant(
    "multi30k_language_model",
    "nothing in the paper: multi30k_ende as language modelling, without an encoder",
    {"model": decoder_only(MULTI30K_ENDE.model, 10)},
)

LM_QUICKSTART = register(
    Experiment(
        name="lm_quickstart",
        reports="nothing in the paper: a language model in minutes, on the English sentences of quickstart",
        task=LanguageModelling(Embedded("quickstart")),
        model=decoder_only(QUICKSTART.model, 4),
        optimizer=QUICKSTART.optimizer,
        batching=BatchingConfig(tokens=1536, max_length=64, shapes=1),
        train_steps=1500,
        label_smoothing=0.0,
        log_every=50,
        evaluate_every=250,
        checkpoint_every=50,
        average=8,
    )
)
