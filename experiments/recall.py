"""Long-range dependencies, a reason for self-attention in section 4: recall a word seen n steps ago, n up to 1,024.

All train on the same lines, of distances up to 64, in as many steps of as many tokens, at the same rates. There are no
sources, so that what has an encoder makes no use of it: the decoders have as many parameters as each other, within 2 %,
but for the positions that ConvS2S learns. `benchmarks/recall.py` trains all and draws accuracy by distance.
"""

import dataclasses

from experiments.language_models import decoder_only
from t2t.data.batching import BatchingConfig
from t2t.data.language_modelling import LanguageModelling
from t2t.data.recall import Recall
from t2t.experiment import Experiment, register
from t2t.models.convolutional import ConvolutionalConfig
from t2t.models.recurrent import RecurrentConfig
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig

VOCABULARY = 40  # 18 words, their characters, ▁ and the three that every vocabulary has
TRANSFORMER = TransformerConfig(
    vocab_size=VOCABULARY, num_layers=2, d_model=64, d_ff=128, num_heads=4, d_k=16, d_v=16, p_drop=0.0, dtype="float32"
)

RECALL = register(
    Experiment(
        name="recall_transformer",
        reports="nothing in the paper: a word recalled after up to 1,024 steps (section 4)",
        task=LanguageModelling(Recall(), duplicates="keep"),
        model=TRANSFORMER,
        optimizer=OptimizerConfig(warmup_steps=100, scale=1.0),
        batching=BatchingConfig(tokens=2160, max_length=72, shapes=2),
        train_steps=600,
        label_smoothing=0.0,
        log_every=50,
        evaluate_every=200,
        checkpoint_every=200,
        average=1,
        final_evaluation="none",
    )
)

ROWS = {
    "language_model": ("a Transformer that only decodes", decoder_only(TRANSFORMER, 3)),
    "restricted": ("one that sees 16 words at a time", dataclasses.replace(TRANSFORMER, attention_span=16)),
    "recurrent": (
        "an LSTM",
        RecurrentConfig(vocab_size=VOCABULARY, num_layers=2, d_model=62, p_drop=0.0, dtype="float32"),
    ),
    "convolutional": (
        "ConvS2S",
        ConvolutionalConfig(
            vocab_size=VOCABULARY, num_layers=3, d_model=64, d_hidden=64, p_drop=0.0, max_length=1040, dtype="float32"
        ),
    ),
}

for name, (what, model) in ROWS.items():
    RECALL.variant(f"recall_{name}", f"nothing in the paper: {what} beside recall_transformer", {"model": model})
