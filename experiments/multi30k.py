"""Image captions, English to German: the small benchmark on which published text-only results are plenty.

Multi30k (Elliott et al. 2016) is free for research, not ours to pass on: put the files of its task 1 (raw) into
data/multi30k, or name their folder with --task.corpus.folder.
"""

from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Text
from t2t.data.translation import Translation
from t2t.experiment import Experiment, register
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig

# The sizes that Wu et al. 2021 found best on it ("Transformer-Tiny"), and their dropout.
TINY = TransformerConfig(
    vocab_size=6000, num_layers=4, d_model=128, d_ff=256, num_heads=4, d_k=32, d_v=32, p_drop=0.3, dtype="float32"
)

MULTI30K_ENDE = register(
    Experiment(
        name="multi30k_ende",
        reports="nothing in the paper: published text-only results are near 41 (lower-cased tokens, test2016)",
        task=Translation(
            Text(
                train="train.en.gz,train.de.gz",
                dev="val.en.gz,val.de.gz",
                test="test_2016_flickr.en.gz,test_2016_flickr.de.gz",
                folder="data/multi30k",
            ),
            "en",
            "de",
        ),
        model=TINY,
        optimizer=OptimizerConfig(warmup_steps=2000, scale=2.0),
        batching=BatchingConfig(tokens=2048, max_length=64, shapes=2),
        train_steps=14_000,
        evaluate_every=490,
        checkpoint_every=245,
        average=10,
    )
)
