"""An experiment on a new corpus with a new architecture, and a variant of it."""

from t2t.data.numbers import Numbers
from t2t.models.bag_of_words import BagOfWordsConfig

from t2t.data.batching import BatchingConfig
from t2t.data.translation import Translation
from t2t.experiment import Experiment, register

EXERCISE = register(
    Experiment(
        name="exercise",
        reports="nothing in the paper",
        task=Translation(Numbers(), "en", "en"),
        model=BagOfWordsConfig(vocab_size=60),
        batching=BatchingConfig(tokens=512, max_length=32, shapes=1),
        train_steps=20,
    )
)
EXERCISE.variant("exercise_wide", "nothing in the paper", {"model.d_model": 128})
