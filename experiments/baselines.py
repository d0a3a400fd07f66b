"""What the paper replaced: other architectures beside the Transformer, on its data, batches and training settings.

Each has as many parameters as the Transformer that it stands beside, within 1 %. An experiment a row: what it is, what
it stands beside, the architecture.

Of the recurrent network's training nothing else differs: at the quickstart's rates its gradient had a norm below 1 all
the way through the warmup, so that there was nothing to clip.
"""

from experiments.multi30k import MULTI30K_ENDE
from experiments.quickstart import QUICKSTART
from t2t.models.convolutional import ConvolutionalConfig
from t2t.models.recurrent import RecurrentConfig

ROWS = {
    "baseline_recurrent": (
        "an LSTM with attention",
        QUICKSTART,
        RecurrentConfig(vocab_size=2000, num_layers=2, d_model=128, p_drop=0.0, dtype="float32"),
    ),
    "baseline_convolutional": (
        "ConvS2S",
        QUICKSTART,
        ConvolutionalConfig(
            vocab_size=2000, num_layers=2, d_model=128, d_hidden=144, p_drop=0.0, max_length=128, dtype="float32"
        ),
    ),
    "multi30k_recurrent": (
        "an LSTM with attention",
        MULTI30K_ENDE,
        RecurrentConfig(vocab_size=6000, num_layers=4, d_model=128, p_drop=0.3, dtype="float32"),
    ),
    "multi30k_convolutional": (
        "ConvS2S",
        MULTI30K_ENDE,
        ConvolutionalConfig(
            vocab_size=6000, num_layers=4, d_model=128, d_hidden=148, p_drop=0.3, max_length=128, dtype="float32"
        ),
    ),
}

for name, (kind, beside, model) in ROWS.items():
    beside.variant(name, f"nothing in the paper: {kind} beside {beside.name}", {"model": model})
