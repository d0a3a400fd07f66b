"""Several runs decoded together."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toys

from t2t import checkpoint, decode, experiment, run
from t2t.batch import EOS, PAD
from t2t.data.corpora import Text
from t2t.data.task import Pair
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


# ------------------------------------------------------------------------------ The verbs

PAIRS = [("ten cat", "sun ten"), ("sun", "cat cat"), ("cat sun ten", "sun")]


@pytest.fixture(scope="module")
def runs(members, tmp_path_factory):
    """A folder with the runs a and b of one vocabulary, c of another, and d, the first one's in the other direction."""
    folder = tmp_path_factory.mktemp("runs")
    models = [dataclasses.replace(config, vocab_size=12) for config in members[0]]
    (folder / "dev.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    ours, other = (Vocabulary.train(words, 12) for words in ({"ten cat": 2, "sun": 1}, {"red old sea": 3}))
    for name, i, pieces, languages in (
        ("a", 0, ours, ("en", "de")),
        ("b", 1, ours, ("en", "de")),
        ("c", 0, other, ("en", "de")),
        ("d", 0, ours, ("de", "en")),
    ):
        task = Translation(Text(dev=str(folder / "dev.tsv")), *languages)
        tree = Experiment(name, "", task, models[i], decoding=DecodingConfig(1, 0.6, 3))
        with run.imported(folder / name, tree, Vocabularies(pieces, pieces), folder, "none") as new:
            checkpoint.save_params(new.checkpoints, 0, toys.params(models[i], scale=1.0, seed=2 + i))
    return folder


@pytest.fixture
def evaluated(runs, t2t, tmp_path):
    """Evaluates the dev split: what is printed, and the lines of the outputs."""

    def evaluate(names, *words):
        code, out, err = t2t("evaluate", *(runs / name for name in names), "--split", "dev", "--json", *words)
        assert code == 0, err
        found = json.loads(out)
        return found, run.evaluation(Path(found["folder"])).lines("hypotheses")

    return evaluate


def test_translate_takes_several_runs(runs, t2t):
    said = []
    for chosen in ("a", "b", "ab", "aa"):
        code, out, _ = t2t("translate", *(runs / name for name in chosen), "--scores", stdin=b"ten cat\nsun\n")
        assert code == 0
        said.append([(float(score), text) for score, text in (line.split("\t") for line in out.splitlines())])
    assert [text for _, text in said[3]] == [text for _, text in said[0]]
    np.testing.assert_allclose([score for score, _ in said[3]], [score for score, _ in said[0]], atol=1e-4)
    assert said[2] not in (said[0], said[1])


def test_evaluating_a_run_twice_is_evaluating_it(runs, evaluated, tmp_path):
    once, outputs = evaluated("a", "--beam", "3")
    for names in ("a", "aa"):
        found, again = evaluated(names, "--beam", "3", "--out", tmp_path / "new" / names)
        assert found["folder"] == str(tmp_path / "new" / names)
        assert found["members"] == [{"run": str(runs / "a"), "checkpoints": [0]}] * len(names)
        assert again == outputs and found["scores"] == once["scores"]
        assert found["perplexity"] == pytest.approx(once["perplexity"], rel=1e-5)
        assert {key: found[key] for key in ("split", "tokens", "data", "decoding")} == {
            key: once[key] for key in ("split", "tokens", "data", "decoding")
        }
        assert "checkpoints" not in found
        files = {path.name for path in (tmp_path / "new" / names).iterdir()}
        assert files == {"scores.json", "sources.txt", "hypotheses.txt", "references.txt"}


def test_outputs_are_those_of_translate_and_perplexity_that_of_the_mean(runs, evaluated, t2t, tmp_path):
    found, outputs = evaluated("ab", "--out", tmp_path / "both")
    text = "".join(f"{source}\n" for source, _ in PAIRS).encode()
    assert outputs == t2t("translate", runs / "a", runs / "b", stdin=text)[1].splitlines()
    assert outputs not in [evaluated(name)[1] for name in "ab"]
    total, count, vocabulary = 0.0, 0, run.load(runs / "a")[2]
    for source, target in zip(*vocabulary.encode([Pair(*pair) for pair in PAIRS]), strict=True):
        batch, mean = toys.batch_of([(source, target)], rows=1, length=16), 0.0
        for name in "ab":
            where, tree, _ = run.load(runs / name)
            params, _ = checkpoint.load_params(where, tree)
            logits = tree.model.build().apply(params, batch.source, batch.target)
            mean = mean + np.asarray(jax.nn.log_softmax(logits[0])) / 2
        log_probs = np.asarray(jax.nn.log_softmax(mean))
        total -= sum(log_probs[t, token] for t, token in enumerate(target))
        count += len(target)
    assert found["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)


def test_it_is_compared_and_never_taken_for_an_evaluation_of_the_first(runs, evaluated, t2t, tmp_path):
    alone, _ = evaluated("a")
    folder = tmp_path / "both"
    both, _ = evaluated("ab", "--out", folder)
    code, out, _ = t2t("compare", runs / "a", folder, "--split", "dev", "--json")
    compared = json.loads(out)
    assert (code, compared["second"]) == (0, str(folder))
    assert compared["scores"]["chrf"]["second"] == pytest.approx(both["scores"]["chrf"]["score"])
    assert t2t("compare", alone["folder"], folder, "--split", "dev", "--json")[1] == out
    members = f"{runs / 'a'} (step 0) and {runs / 'b'} (step 0); beam 1, alpha 0.6"
    assert f"second        {folder}, weights: {members}" in t2t("compare", runs / "a", folder, "--split", "dev")[1]
    found = json.loads(t2t("bleu", folder / "references.txt", folder / "hypotheses.txt", "--json")[1])
    assert found == both["scores"]
    shutil.copytree(folder, runs / "a" / "evaluations" / "moved")  # by hand
    kept = [each.folder.name for each in run.evaluations(run.Run(runs / "a"), "dev")]
    assert Path(alone["folder"]).name in kept and "moved" not in kept
    out = t2t("evaluate", runs / "b", runs / "a", "--split", "dev", "--out", tmp_path / "printed")[1]
    assert out.startswith(f"dev split, weights: {runs / 'b'} (step 0) and {runs / 'a'} (step 0); beam 1, alpha 0.6\n")


MISTAKES = {
    "evaluate {runs}/a {runs}/b": "2 runs: say where their evaluation goes with --out DIR",
    "evaluate {runs}/a {runs}/c --out {tmp}/new": "{runs}/c has another vocabulary than {runs}/a: only runs of one are",
    "translate {runs}/a {runs}/c": "{runs}/c has another vocabulary than {runs}/a: only runs of one are decoded",
    "translate {runs}/a {runs}/d": "{runs}/d translates de into en, but {runs}/a translates en into de",
    "evaluate {runs}/a {runs}/b --out {tmp}": "{tmp} exists: choose another folder with --out",
    "evaluate {runs}/a {runs}/b --out {runs}/a/evaluations/it": "{runs}/a/evaluations/it is in the run folder {runs}/a",
    "evaluate {runs}/a {runs}/b --out s3://bucket/it": "s3://bucket/it: a run folder is a path or an address",
    "evaluate {runs}/a {runs}/b --out {tmp}/new --split test": "this corpus names no file for its test split",
    "compare {runs}/a {there}": "{runs}/a has no evaluation of the test split",
    "compare {there} {runs}/a": "{there} is an evaluation of the dev split, not of test (--split)",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items())
def test_a_mistake_is_one_line(runs, t2t, tmp_path, words, complaint):
    places = {"runs": runs, "tmp": tmp_path, "there": tmp_path / "there"}
    (tmp_path / "there").mkdir()
    summary = {
        "split": "dev",
        "decoding": None,
        "members": [],
        "task": experiment.to_json(Translation(Text(), "a", "b")),
    }
    (tmp_path / "there" / "scores.json").write_text(json.dumps(summary))
    code, out, err = t2t(*words.format(**places).split())
    assert (code, out) == (2, "") and "Traceback" not in err
    assert complaint.format(**places) in err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
