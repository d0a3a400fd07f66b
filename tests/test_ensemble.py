"""Several runs decoded together."""

import dataclasses

import jax
import numpy as np
import pytest
import toys

from t2t import checkpoint, decode, run
from t2t.batch import EOS, PAD
from t2t.data.corpora import Text
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.decode import DecodingConfig
from t2t.experiment import Experiment
from t2t.models.ensemble import EnsembleConfig

SOURCES = [[5, 6, EOS], [7, EOS], [3, 9, 4, EOS]]


@pytest.fixture(scope="module")
def members():
    """Two models of different sizes, and their weights."""
    configs = [toys.config(), toys.config(d_model=12, d_ff=9, num_layers=1, positions="learned", max_length=40)]
    return configs, [toys.params(each, scale=1.0, seed=i) for i, each in enumerate(configs)]


def test_greedy_outputs_are_those_of_averaging_by_hand(members):
    configs, params = members
    model = EnsembleConfig(tuple(configs)).build()
    found = dict(decode.decode(model, tuple(params), SOURCES, DecodingConfig(beam=1, alpha=0.0, extra_length=2)))
    for i, source in enumerate(SOURCES):
        tokens, total = [], 0.0
        while (not tokens or tokens[-1] != EOS) and len(tokens) < len(source) + 2:
            batch = toys.batch_of([(source, [*tokens, PAD + 3])], rows=1)
            logits = [
                c.build().apply(p, batch.source, batch.target)[0, len(tokens)] for c, p in zip(*members, strict=True)
            ]
            mean = np.mean([jax.nn.log_softmax(each) for each in logits], axis=0)
            log_probs = np.asarray(jax.nn.log_softmax(mean))
            tokens.append(int(np.where(np.arange(len(mean)) == PAD, -np.inf, log_probs).argmax()))
            total += log_probs[tokens[-1]]
        assert found[i][0].tokens == [token for token in tokens if token != EOS]
        np.testing.assert_allclose(found[i][0].score, total, atol=1e-4)


def test_a_model_twice_is_the_model(members):
    """In beam search too, whose cache grows and changes places."""
    (config, _), (params, _) = members
    how = DecodingConfig(beam=3, extra_length=6)
    twice = decode.decode(EnsembleConfig((config, config)).build(), (params, params), SOURCES, how)
    once = dict(decode.decode(config.build(), params, SOURCES, how))
    for i, found in twice:
        assert [each.tokens for each in found] == [each.tokens for each in once[i]]
        np.testing.assert_allclose([each.score for each in found], [each.score for each in once[i]], atol=1e-4)


def test_translate_takes_several_runs(members, tmp_path, t2t):
    configs, params = members
    for words, names in (({"ten cat": 2, "sun": 1}, ("a", "b")), ({"red old sea": 3}, ("c",))):
        pieces = Vocabulary.train(words, 12)
        for name, config, its_params in zip(names, configs, params, strict=False):
            model = dataclasses.replace(config, vocab_size=12)
            tree = Experiment(name, "", Translation(Text(), "en", "de"), model, decoding=DecodingConfig(1, 0.6, 3))
            cut = jax.tree_util.tree_map_with_path(lambda at, x: x[:12] if "table" in str(at) else x, its_params)
            with run.imported(tmp_path / name, tree, Vocabularies(pieces, pieces), tmp_path, "none") as new:
                checkpoint.save_params(new.checkpoints, 0, cut)
    said = []
    for chosen in ("a", "b", "ab", "aa"):
        code, out, _ = t2t("translate", *(tmp_path / name for name in chosen), "--scores", stdin=b"ten cat\nsun\n")
        assert code == 0
        said.append([(float(score), text) for score, text in (line.split("\t") for line in out.splitlines())])
    assert [text for _, text in said[3]] == [text for _, text in said[0]]
    np.testing.assert_allclose([score for score, _ in said[3]], [score for score, _ in said[0]], atol=1e-4)
    assert said[2] not in (said[0], said[1])
    code, _, err = t2t("translate", tmp_path / "a", tmp_path / "c")
    assert (code, "has another vocabulary than" in err) == (2, True)
