"""Training that begins with the weights of another run."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import toys

from t2t import checkpoint, experiment, run
from t2t.__main__ import main
from t2t.errors import UserError
from t2t.experiment import override
from t2t.train import train


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """(experiment, run folder) of weights of which none is as training begins."""
    folder = tmp_path_factory.mktemp("before")
    tree = toys.reversal(folder)
    from t2t.data.prepare import Sizes, prepare

    vocabulary = prepare(tree.task, Sizes(tree.model.vocab_size), print).vocabulary
    with run.imported(folder / "run", tree, vocabulary, folder, "none") as new:
        checkpoint.save_params(new.checkpoints, 0, toys.params(tree.model))
    return tree, folder / "run"


def nothing(*_):
    pass


def test_training_begins_with_the_weights_and_the_vocabulary_of_a_run(before, tmp_path):
    """A step of a rate of next to nothing leaves them as they are; the vocabulary is not made anew from other text."""
    there, folder = before
    toys.reversal(tmp_path)
    (tmp_path / "train.tsv").write_text("map ice\tice map\n" * 20 + "sun\tsun\n")
    still = {"init_from": str(folder), "train_steps": 1, "optimizer.scale": 1e-12, "final_evaluation": "none"}
    here = override(dataclasses.replace(toys.reversal_in(tmp_path), model=there.model), still)
    found = train(here, tmp_path / "run", nothing, nothing)
    params = [checkpoint.load_params(each, tree)[0] for each, tree in ((run.Run(folder), there), (found, here))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *params)
    assert run.load(found.folder)[2].fingerprint == run.load(folder)[2].fingerprint
    assert run.load(found.folder)[1].init_from == str(folder)


def test_weights_of_other_shapes_are_refused(before, tmp_path):
    there, folder = before
    here = override(there, {"init_from": str(folder), "model.d_ff": 128})
    with pytest.raises(UserError, match=r"its weights do not fit: model\.d_ff is 64 there, 128 here"):
        train(here, tmp_path / "run", nothing, nothing)
    assert not (tmp_path / "run").exists()


def test_on_the_command_line_the_model_is_that_of_the_run(before, capsys):
    _, folder = before
    assert main(["show", "own_small", "--init_from", str(folder), "--model.p_drop", "0.3"]) == 0
    shown = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert (shown["model.d_ff"], shown["model.p_drop"], shown["batching.tokens"]) == ("64", "0.3", "4096")
    assert main(["show", "own_small", "--init_from", str(folder / "none")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_run_goes_on_when_that_which_it_began_with_is_gone(before, tmp_path, monkeypatch, capsys):
    """As the command is given again, word for word."""
    there, folder = before
    shutil.copytree(folder, tmp_path / "first")
    monkeypatch.setattr(experiment, "registered", lambda: {"reversal": there})
    words = ["train", "reversal", "--init_from", str(tmp_path / "first"), "--run", str(tmp_path / "run")]
    words += ["--final_evaluation", "none", "--train_steps"]
    assert main([*words, "2"]) == 0
    shutil.rmtree(tmp_path / "first")
    assert main([*words, "4"]) == 0
    assert checkpoint.all_steps(tmp_path / "run" / "checkpoints") == [2, 4]
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # now there is nothing to begin with
    assert main([*words, "4"]) == 2
    assert f"{tmp_path / 'first'} is not a run folder" in capsys.readouterr().err.splitlines()[-1]
