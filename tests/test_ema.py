"""The moving mean of the weights that training can keep beside them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys

from t2t import checkpoint, run
from t2t.__main__ import main
from t2t.data.corpora import Text
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.experiment import Experiment
from t2t.optimizer import OptimizerConfig, unbiased


def test_the_moving_mean_is_that_of_the_weights_after_each_update():
    adam, plain = (OptimizerConfig(warmup_steps=2, clip_norm=1.0, ema=ema).build(4) for ema in (0.9, 0.0))
    params = {"w": jnp.array([1.0, -2.0])}
    state, other, weights = adam.init(params), plain.init(params), []
    for i in range(3):
        gradient = {"w": jnp.array([1.0 + i, 0.5])}
        updates, state = adam.update(gradient, state, params)
        same, other = plain.update(gradient, other, params)
        np.testing.assert_array_equal(updates["w"], same["w"])
        params = optax.apply_updates(params, updates)
        weights.append(np.asarray(params["w"]))
    shares = 0.9 ** np.array([2, 1, 0])
    wanted = (shares[:, None] * np.array(weights)).sum(0) / shares.sum()
    np.testing.assert_allclose(unbiased(state[-1], 0.9, 3)["w"], wanted, rtol=1e-5)
    assert np.abs(wanted - weights[-1]).max() > 0.01


def test_a_run_folder_of_the_moving_mean(tmp_path, capsys):
    model = toys.config(vocab_size=20)
    pieces = Vocabulary.train({"ten cat sun red": 2, "map": 1}, 20)
    tree = Experiment("toy", "", Translation(Text(), "en", "de"), model, OptimizerConfig(ema=0.5))
    params = toys.params(model)
    adam = tree.optimizer.build(model.d_model)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, state = adam.update(gradient, adam.init(params), params)
    for name, each in (("with", tree), ("without", dataclasses.replace(tree, optimizer=OptimizerConfig()))):
        made = run.imported(tmp_path / name, each, Vocabularies(pieces, pieces), tmp_path, "none")
        with made as new, checkpoint.writer(new.checkpoints, 1) as checkpoints:
            checkpoint.save(checkpoints, 1, params, state, {})
    assert main(["average", str(tmp_path / "with"), "--ema"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "with-ema")
    found, steps = checkpoint.load_params(run.Run(tmp_path / "with-ema"), tree)
    wanted = optax.apply_updates(params, updates)  # after one update, the weights after it
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)
    assert steps == [1]
    assert main(["average", str(tmp_path / "with"), "--ema", "--average", "3"]) == 2
    assert "--average N is the mean of checkpoints" in capsys.readouterr().err
    assert main(["average", str(tmp_path / "without"), "--ema"]) == 2
    assert "it was trained without --optimizer.ema" in capsys.readouterr().err
