"""Text of your own: name the files on the command line.

    t2t train own_small --task.corpus.train train.en,train.de --task.corpus.dev dev.en,dev.de

A tab-separated file, two files, a pattern or a folder do; see t2t/data/corpora.py.
"""

from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Text
from t2t.data.translation import Translation
from t2t.experiment import Experiment, register
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig

OWN_BASE = register(
    Experiment(
        name="own_base",
        reports="nothing in the paper: its base model, on text of your own",
        task=Translation(Text(), "en", "de"),
        model=TransformerConfig(vocab_size=32_000),
        final_evaluation="dev",
    )
)

OWN_SMALL = register(
    Experiment(
        name="own_small",
        reports="nothing in the paper: its architecture at a size for CPUs, on text of your own",
        task=Translation(Text(), "en", "de"),
        model=TransformerConfig(
            vocab_size=8000, num_layers=3, d_model=256, d_ff=1024, num_heads=4, p_drop=0.1, dtype="float32"
        ),
        optimizer=OptimizerConfig(warmup_steps=2000),
        batching=BatchingConfig(tokens=4096, max_length=128),
        train_steps=20_000,
        evaluate_every=1000,
        checkpoint_every=1000,
        final_evaluation="dev",
    )
)
