"""The whole system in minutes on two CPU cores: English to German, on sentences that come with t2t."""

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
            vocab_size=4000,
            num_layers=3,
            d_model=128,
            d_ff=512,
            num_heads=4,
            d_k=32,
            d_v=32,
            p_drop=0.1,
            max_length=512,
            dtype="float32",
        ),
        optimizer=OptimizerConfig(warmup_steps=400, scale=2.0),
        batching=BatchingConfig(tokens=2048, max_length=32, shapes=3),
        train_steps=1500,
        log_every=50,
        evaluate_every=500,
        checkpoint_every=100,
        average=5,
    )
)
