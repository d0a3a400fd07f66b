"""The decoder-only model: against a NumPy reading, its cache against teacher forcing, what must change nothing; and
texts drawn from it, from the command line too.
"""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys
from test_house import parameters

from t2t import decode, experiment, train
from t2t.batch import EOS, PAD, Batch, Sequences
from t2t.data.batching import BatchingConfig, Epochs, fill
from t2t.data.corpora import Embedded
from t2t.data.language_modelling import LanguageModelling
from t2t.data.pipeline import TrainingBatches, pairs
from t2t.data.prepare import Sizes, prepare
from t2t.errors import UserError
from t2t.evaluate import batch_sums
from t2t.interop import expressible
from t2t.knobs import comments
from t2t.models.language_model import LanguageModelConfig
from t2t.models.transformer import TransformerConfig
from t2t.sharding import MeshConfig, make_mesh, on, place, shardings, unboxed


def config(**changes) -> LanguageModelConfig:
    """A model of two layers in which no two sizes are equal."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, dtype="float32")
    return LanguageModelConfig(**{**sizes, **changes})


CONFIG = config()
MODEL, PARAMS = CONFIG.build(), toys.params(CONFIG)
PAIRS = [([5, 9, 3, 1], [7, 8, 6, 11, 1]), ([4, 12, 1], [3, 1]), ([], [9, 2, 13, 1])]


@jax.jit
def logits(source, target, params=PARAMS):
    return MODEL.apply(params, source, target)


def apart(pairs=PAIRS, length=8) -> Batch:
    """A pair a row."""
    return toys.batch_of(pairs, rows=len(pairs), length=length)


def real(logits, target):
    """Without those of padding."""
    return np.where(target.segments[..., None], logits, 0)


def packed(pairs=PAIRS, length=12) -> Batch:
    """All pairs in one row."""
    sides = []
    for side in zip(*pairs, strict=True):
        made = np.zeros((3, 1, length), np.int32)
        begin = 0
        for number, tokens in enumerate(side, 1):
            place = slice(begin, begin := begin + len(tokens))
            made[:, 0, place] = tokens, [number] * len(tokens), range(len(tokens))
        sides.append(Sequences(*made))
    return Batch(*sides)


# ------------------------------------------------------------------------------ The whole forward


def test_logits_are_those_of_the_numpy_reading():
    found, model = logits(*apart()), toys.as_reference(PARAMS, CONFIG)
    for row, (source, target) in enumerate(PAIRS):
        expected = reference.language_model(model, source, target)
        np.testing.assert_allclose(found[row, : len(target)], expected, atol=1e-4)


def test_a_bias_of_the_logits_is_added_to_them():
    biased = config(output_bias=True)
    bias = np.random.default_rng(0).normal(size=17).astype("f")
    params = {"params": {**PARAMS["params"], "embedding": {**PARAMS["params"]["embedding"], "output_bias": bias}}}
    assert jax.tree.structure(params) == jax.tree.structure(toys.params(biased))
    batch = apart()
    np.testing.assert_allclose(biased.build().apply(params, *batch), logits(*batch) + bias, atol=1e-5)


def test_sentences_packed_into_a_row_do_not_see_each_other():
    alone, together, begin = logits(*apart()), logits(*packed()), 0
    for row, (_, target) in enumerate(PAIRS):
        np.testing.assert_allclose(together[0, begin : begin + len(target)], alone[row, : len(target)], atol=1e-5)
        begin += len(target)


def test_later_tokens_change_nothing_before_them_and_every_earlier_one_matters():
    source, target = PAIRS[0]
    before = logits(*apart())
    for t in range(len(target)):
        after = logits(*apart([(source, [*target[:t], 14, *target[t + 1 :]]), *PAIRS[1:]]))
        np.testing.assert_array_equal(before[0, : t + 1], after[0, : t + 1])
        assert (np.abs(before - after)[0, t + 1 : len(target)].max(-1) > 1e-6).all()
    for s in range(len(source)):
        after = logits(*apart([([*source[:s], 14, *source[s + 1 :]], target), *PAIRS[1:]]))
        assert (np.abs(before - after)[0, : len(target)].max(-1) > 1e-6).all()


def test_padding_changes_nothing():
    source, target = apart()
    garbage = [side._replace(tokens=np.where(side.segments, side.tokens, 13)) for side in (source, target)]
    np.testing.assert_array_equal(real(logits(*garbage), target), real(logits(source, target), target))
    wide = apart(length=12)
    np.testing.assert_allclose(real(logits(*wide), wide.target)[:, :8], real(logits(source, target), target), atol=1e-5)


def test_no_source_at_all_is_as_empty_sources():
    """As arrays without columns, which is how texts without sources are batched."""
    texts = [target for _, target in PAIRS]
    empty = apart([([], text) for text in texts])
    without = fill([[] for _ in texts], len(texts), 0), empty.target
    assert without[0].tokens.shape == (3, 0)
    found, expected = (real(logits(*batch), empty.target) for batch in (without, empty))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_source_is_a_beginning_of_the_target_that_is_given():
    """The last rows of a text's logits are those of its end, given its beginning: so prompts are what was learnt."""
    text = [5, 9, 3, 6, 7, 8, 1]
    whole = logits(*apart([([], text)]))[0, :7]
    for cut in range(1, 7):
        rest = logits(*apart([(text[:cut], text[cut:])]))[0, : 7 - cut]
        np.testing.assert_allclose(rest, whole[cut:], atol=1e-5)


def test_what_it_cannot_be_is_refused_and_learned_positions_are_halved():
    with pytest.raises(UserError, match="target_vocab_size must be 0 in a language model, not 5"):
        config(target_vocab_size=5)
    for knob, value in (("decoder_layers", 1), ("projection", "own"), ("start", "padding")):
        with pytest.raises(UserError, match=f"--model.{knob} must be .* in a language model, not {value}"):
            config(**{knob: value})
    for changes in (dict(attention="fused"), dict(attention_span=4)):
        with pytest.raises(UserError, match="a language model has --model"):
            config(**changes)
    assert config(positions="learned", max_length=9).longest == 4 and CONFIG.longest is None


# ------------------------------------------------------------------------------ Decoding


def started(model, params, source, beams, room):
    memory = model.apply(params, source, method="encode")
    return model.apply(params, source, memory, beams, room, method="start")


@pytest.mark.parametrize(
    ("positions", "norm", "attention"),
    [("sinusoid", "post", "dense"), ("learned", "post", "dense"), ("rope", "pre", "blocked")],
)
def test_step_by_step_equals_teacher_forcing(positions, norm, attention):
    ours = config(positions=positions, norm=norm, attention=attention, max_length=16)
    model, params, (source, target) = ours.build(), toys.params(ours), apart()
    whole, cache = jax.jit(lambda: (model.apply(params, source, target), started(model, params, source, 2, 6)))()
    step, before = jax.jit(functools.partial(model.apply, method="step")), jnp.zeros((3, 2), jnp.int32)
    for t in range(5):
        found, cache = step(params, cache, before)
        there = target.segments[:, t] == 1
        for beam in range(2):
            np.testing.assert_allclose(found[there, beam], whole[there, t], atol=1e-4)
        before = jnp.tile(target.tokens[:, t : t + 1], (1, 2))


def test_the_cache_is_as_its_letters_say():
    source = fill([[3, 1], [4, 5, 1]], 2, 7)
    cache = jax.eval_shape(lambda: started(MODEL, PARAMS, source, 6, 9))
    sizes = dict(B=2, K=6, T=6 * 9, S=7, H=3, k=4, v=5, V=17, D=8)
    assert cache.keys() == MODEL.cache_axes.keys()
    for name, axes in MODEL.cache_axes.items() - {("layers", "")}:
        layers = jax.tree.leaves(cache[name])
        assert len(layers) == (2 if "H" in axes else 1)
        assert {x.shape for x in layers} == {tuple(sizes[a] for a in axes)}


TINY = config(vocab_size=5)
TINY_MODEL, TINY_PARAMS = TINY.build(), toys.params(TINY, scale=1.0)
SOURCES = [[3, 4, 2, 1], [4, 1], [2, 2, 3, 3, 4, 1]]
tiny_logits = jax.jit(TINY_MODEL.apply)


@functools.cache
def next_log_probs(source, prefix):
    """log p(next | prefix) [V] without a cache: the whole prefix is fed again."""
    batch = toys.batch_of([(list(source), [*prefix, 2])], rows=1, length=16)
    found = tiny_logits(TINY_PARAMS, *batch)[0, len(prefix)]
    return np.asarray(jax.nn.log_softmax(found), np.float64)


@pytest.mark.parametrize("beam", [1, 3])
def test_beam_search_is_the_plain_one(beam):
    """Outputs longer than what the cache has room for at first."""
    source = fill(SOURCES, 3, 8)
    found = decode.beam_search(TINY_MODEL, TINY_PARAMS, source, jnp.array([6, 3, 7]), beam, 0.6, 7)
    for limit, sentence, tokens, scores in zip([6, 3, 7], SOURCES, *jax.device_get(found), strict=True):
        ours = decode._hypotheses(tokens, scores)
        following = functools.partial(next_log_probs, tuple(sentence))
        theirs = reference.beam_search(following, beam, EOS, 0.6, limit)
        assert [h.tokens for h in ours] == [[t for t in tokens if t != EOS] for tokens, _ in theirs]
        np.testing.assert_allclose([h.score for h in ours], [score for _, score in theirs], atol=1e-4)


def draws(count, source, **how):
    sampling, config = decode.SamplingConfig(**how), decode.DecodingConfig(rows=512, extra_length=3)
    found = decode.decode(TINY_MODEL, TINY_PARAMS, [source] * count, config, sampling)
    return [best[0].tokens for _, best in sorted(found)]


@pytest.mark.parametrize("prompt", [(), (3, 4, 2)])
def test_samples_follow_the_model(prompt):
    """The first two tokens of 2,000 draws after a prompt, or after nothing, within four standard errors."""
    drawn = draws(2000, list(prompt))
    for prefix in ([], [3]):
        expected = np.exp(next_log_probs(prompt, tuple(prefix)))
        expected[PAD] = 0
        expected /= expected.sum()
        after = [[*d, EOS][len(prefix)] for d in drawn if d[: len(prefix)] == prefix]
        assert len(after) > 100
        seen = np.bincount(after, minlength=5) / len(after)
        np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / np.sqrt(len(after)))


# ------------------------------------------------------------------------------ Texts without sources


def test_rows_of_texts_without_sources_have_no_room_for_any():
    lengths = np.random.default_rng(0).integers(2, 20, 2000)
    epochs = Epochs(np.zeros(2000, int), lengths, BatchingConfig(tokens=256, max_length=32, shapes=2), 0)
    assert {bucket.room for bucket in epochs.buckets} <= {(0, 16), (0, 32)}
    drawn = [epochs.at(step) for step in range(len(epochs))]
    assert sorted(np.concatenate([each.pairs for each in drawn])) == list(range(2000))
    assert max(np.bincount(each.row, weights=lengths[each.pairs]).max() for each in drawn) == 32
    assert epochs.padding < 0.05


def test_texts_are_prepared_and_batched_alone(cycles):
    (cycles_folder := Path(cycles.task.corpus.train).parent).joinpath("gaps.txt").write_text(
        "ten cat\n \nten cat\n\nsun\n"
    )
    prepared = prepare(cycles.task, Sizes(40), lambda _: None)
    assert prepared.report["lengths"]["source"]["tokens"] == 0
    batch = TrainingBatches(prepared, cycles.batching, 0)[0]
    assert batch.source.tokens.shape == (32, 0) and batch.target.segments.max() >= 2
    texts = [target for _, target in pairs(batch)]
    known = {
        tuple(ids) for ids in prepared.vocabulary.target.encode((cycles_folder / "train.txt").read_text().split("\n"))
    }
    assert len(texts) > 60 and {tuple(ids) for ids in texts} <= known
    task = dataclasses.replace(
        cycles.task, corpus=dataclasses.replace(cycles.task.corpus, train=str(cycles_folder / "gaps.txt"))
    )
    for duplicates, kept in (("keep", 3), ("drop", 2)):
        found = prepare(
            dataclasses.replace(task, duplicates=duplicates, vocabulary=str(prepared.folder / "shared.model")),
            Sizes(40),
            lambda _: None,
        )
        assert (found.report["kept"], found.report["dropped"]["empty"]) == (kept, 2)


def test_one_side_of_a_corpus_of_pairs():
    sides = [LanguageModelling(Embedded("quickstart"), side=side) for side in ("source", "target")]
    pairs = next(Embedded("quickstart").pairs("dev"))
    assert [next(task.pairs("dev")) for task in sides] == [("", pairs.source), ("", pairs.target)]
    assert sides[0].inputs("dev") != sides[1].inputs("dev") != Embedded("quickstart").inputs("dev")


@pytest.fixture(scope="module")
def cycles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cycles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2T_DATA", str(folder / "cache"))
        yield toys.cycles(folder)


def test_a_batch_on_four_devices_is_that_on_one(cycles):
    """Arrays of sources without columns are laid out like any other."""
    tokens = np.random.default_rng(0).integers(3, 40, (4, 6), np.int32)
    target = Sequences(tokens, np.ones_like(tokens), np.tile(np.arange(6, dtype=np.int32), (4, 1)))
    batch = Batch(Sequences(*(x[:, :0] for x in target)), target)
    params, mesh = train.init_state(cycles, jax.random.key(0)).params, make_mesh(MeshConfig(2, 1, 2))
    sums = functools.partial(batch_sums, cycles.model.build())
    alone = sums(unboxed(params), batch)
    with on(mesh):
        together = sums(jax.device_put(unboxed(params), shardings(mesh, params)), place(mesh, batch))
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4)


# ------------------------------------------------------------------------------ The command line


@pytest.fixture
def registered(cycles, toy, monkeypatch):
    decodes = dict(name="reversal_lm", model=LanguageModelConfig(**dataclasses.asdict(toy.model)))
    known = {**experiment.registered(), "cycles": cycles, "reversal_lm": dataclasses.replace(toy, **decodes)}
    monkeypatch.setattr(experiment, "registered", lambda: known)


@pytest.fixture(scope="module")
def run(cycles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cycles"
    train.train(cycles, folder, lambda _: None, lambda *_: None)
    return str(folder)


@pytest.fixture(scope="module")
def translating(run, toy):
    """The same run, had it been of translation."""
    folder = Path(shutil.copytree(run, f"{run}-translating"))
    record = json.loads((folder / "experiment.json").read_text())
    record["experiment"]["task"] = experiment.to_json(toy.task)
    (folder / "experiment.json").write_text(json.dumps(record))
    return str(folder)


def test_it_learns_and_evaluate_gives_its_perplexity(t2t, run, tmp_path):
    """What is left to chance are the first of 8 words, and the end after 3, 4 or 5: log 24 over 5 tokens on average."""
    code, out, err = t2t("evaluate", run)
    (folder,) = re.findall(r"outputs +(.*)", out)
    summary = json.loads((Path(folder) / "scores.json").read_text())
    assert code == 0 and "32 test texts" in err and "decoding" not in err
    assert 1.8 < summary["perplexity"] < 2.05 and summary["scores"] == {} and summary["decoding"] is None
    assert out.startswith("test split, weights: step 120\nperplexity")
    assert [path.name for path in sorted(Path(folder).iterdir())] == ["references.txt", "scores.json"]
    code, out, err = t2t("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and f"{summary['perplexity']:.2f}" in page and "t2t sample draws some" in page


def sample(t2t, *words):
    code, out, err = t2t("sample", *words)
    assert code == 0, err
    return out.splitlines()


def test_sample_goes_on_with_the_prompt(t2t, run):
    for line in sample(t2t, run, "--prompt", " cat  sun", "--samples", "3", "--temperature", "0.1"):
        assert line.startswith("cat sun red") and toys.WORDS[:6][1:][: len(line.split())] == line.split()
    assert {line.partition(" ")[0] for line in sample(t2t, run, "--samples", "64")} >= {*toys.WORDS}


def test_a_text_depends_on_seed_and_number_alone(t2t, run):
    five = sample(t2t, run, "--samples", "5")
    assert sample(t2t, run, "--samples", "5") == five
    assert sample(t2t, run, "--samples", "2") == five[:2]
    assert sample(t2t, run, "--samples", "5", "--seed", "1") != five
    assert len(set(sample(t2t, run, "--samples", "5", "--top_k", "1"))) == 1


def test_a_text_ends_at_its_limit(t2t, run):
    """As many tokens after the prompt as it has, and so many more."""
    for extra, words in ((0, 4), (1, 5)):
        drawn = sample(t2t, run, "--prompt", "ten cat", "--decoding.extra_length", extra, "--samples", "16")
        assert max(len(line.split()) for line in drawn) == words


def test_what_the_vocabulary_lacks_is_said(t2t, run):
    code, out, err = t2t("sample", run, "--prompt", "ten 猫")
    assert code == 0 and out.startswith("ten 猫") and "training had too few of" in err


MISTAKES = {
    ("sample", "{run}", "--prompt", "  "): "--prompt is empty: leave it out",
    ("sample", "{run}", "--prompt", "ten " * 600): "--prompt has 600 tokens; the model takes 512",
    ("sample", "{run}", "--prompt"): "argument --prompt: expected one argument",
    ("sample", "{run}", "--temperature", "0"): "--temperature is a number, at least 0.001, not 0",
    ("sample", "{run}", "--top_k", "few"): "--top_k is a whole number, at least 0, not 'few'",
    ("sample", "{run}", "--nucleus", "1.5"): "--nucleus is a number, above 0 and at most 1, not 1.5",
    ("sample", "{run}", "--samples", "0"): "--samples is a whole number, at least 1, not 0",
    ("sample", "{run}", "--seed", "-1"): "--seed is a whole number",
    ("sample", "{run}", "--promt", "ten"): "--promt cannot change in a trained run",
    ("sample", "{run}/none"): "{run}/none is not a run folder",
    ("sample", "{translating}"): "this run has outputs for sources, by `t2t translate`",
    ("translate", "{run}"): "this run models text and translates nothing",
    ("parse", "{run}"): "this run does not parse",
    ("score", "{run}", "{run}/experiment.json", "{run}/experiment.json"): "this run models text",
    ("attention", "{translating}", "--text", "ten", "--out", "a.svg"): "LanguageModel shows no attention weights",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items(), ids=MISTAKES.values())
def test_a_mistake_is_one_line_and_exit_code_2(t2t, run, translating, words, complaint):
    places = {"run": run, "translating": translating}
    code, out, err = t2t(*(word.format(**places) for word in words))
    last = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and "Traceback" not in err
    assert last.startswith("t2t: ") and complaint.format(**places) in last


@pytest.mark.usefixtures("registered")
def test_training_ends_with_what_to_try(t2t, tmp_path):
    code, out, err = t2t("train", "cycles", "--run", tmp_path / "run", "--train_steps", "2", "--checkpoint_every", "1")
    assert code == 0 and "perplexity" in out and "chrf" not in out
    assert f'try next      t2t sample --prompt "The" {tmp_path}/run --average 2' in out
    assert "0 source and" in err


@pytest.mark.usefixtures("registered")
def test_translation_as_language_modelling_is_evaluated_like_any_other(t2t, tmp_path):
    words = ("--train_steps", "2", "--checkpoint_every", "2", "--decoding.extra_length", "2")
    code, out, _ = t2t("train", "reversal_lm", "--run", tmp_path / "run", *words)
    assert code == 0 and "beam 4" in out and "sacrebleu " in out


COUNTS = {"lm_quickstart": 783_872, "baseline_language_model": 915_840, "multi30k_language_model": 2_087_680}
BESIDE = {"baseline_language_model": "quickstart", "multi30k_language_model": "multi30k_ende"}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameters_are_as_many_as_those_of_the_transformer_beside_it(name, count):
    assert parameters(experiment.get(name).model) == count
    assert parameters(experiment.get(BESIDE.get(name, name)).model) == pytest.approx(count, rel=0.001)


def test_list_show_and_diff(t2t):
    assert all(f"\n{name} " in t2t("list")[1] for name in COUNTS)
    shown = t2t("show", "lm_quickstart")[1]
    assert comments(TransformerConfig)["d_ff"] in shown and "task.side" in shown
    found = t2t("diff", "quickstart", "baseline_language_model")[1].splitlines()
    assert found[2:] == ["model.num_layers: 2 -> 5", "base:  -> quickstart"]


def test_texts_without_sources_cost_one_side(t2t):
    """A row more of source positions, whose logits nobody asks for, is worth less than one of targets."""
    names = ["lm_quickstart", "baseline_language_model"]
    texts, pairs = (json.loads(t2t("cost", name, "--json")[1]) for name in names)
    assert [texts["parameters"], pairs["parameters"]] == [COUNTS[name] for name in names]
    a_layer = 128 * 4 * 4 * 32 + 2 * 128 * 256
    per_token = [6 * (layers * a_layer * sides + 128 * 2000) for layers, sides in ((4, 1), (5, 2))]
    for found, least in zip((texts, pairs), per_token, strict=True):
        assert 1 < found["flops_per_token"] / least < 1.15


def test_engines_for_transformers_refuse_it():
    vocabulary: Any = None  # is not looked at
    with pytest.raises(UserError, match="Marian has Transformers of encoder and decoder only, no LanguageModelConfig"):
        expressible.check(CONFIG, vocabulary, "Marian")
