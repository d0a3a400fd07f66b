"""The whole system in minutes on two CPU cores: English to German, on sentences that come with t2t.

No dropout: in five epochs so small a model does not learn the sentences by heart, and with dropout it learned more
slowly at each setting tried.
"""

from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Embedded
from t2t.data.translation import Translation
from t2t.experiment import Experiment, register
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig

QUICKSTART = register(
    Experiment(
        name="quickstart",
        reports="nothing in the paper: its architecture, small, on 40,000 short sentences",
        task=Translation(Embedded("quickstart"), "en", "de"),
        model=TransformerConfig(
            vocab_size=2000,
            num_layers=2,
            d_model=128,
            d_ff=256,
            num_heads=4,
            d_k=32,
            d_v=32,
            p_drop=0.0,
            dtype="float32",
        ),
        optimizer=OptimizerConfig(warmup_steps=400, scale=0.6),
        batching=BatchingConfig(tokens=768, max_length=32, shapes=1),
        train_steps=3300,
        log_every=50,
        evaluate_every=1100,
        checkpoint_every=100,
        average=8,
    )
)
