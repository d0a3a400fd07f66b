"""Weights elsewhere give what they give here."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toys

from t2t import decode
from t2t.batch import EOS
from t2t.data.linearisation import Alphabet, Linearisation, TreeVocabulary
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.decode import DecodingConfig
from t2t.errors import UserError
from t2t.interop import ctranslate2 as ours

WORDS = ["ein", "eine", "haus", "am", "wald", "wind", "dein", "main", "saum"]


@pytest.fixture(scope="module")
def vocabulary():
    pieces = Vocabulary.train({word: 9 - i for i, word in enumerate(WORDS)}, 24)
    return Vocabularies(pieces, pieces)


KINDS = {
    "the paper's": {},
    "learned positions, biases": dict(positions="learned", bias=True, activation="swish", norm_epsilon=1e-5),
    "two vocabularies": dict(target_vocab_size=24, activation="gelu", output_bias=True, projection="own"),
    "pre-LN, fewer layers in the decoder": dict(norm="pre", decoder_layers=1, start="padding"),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def exported(request, vocabulary, tmp_path_factory):
    """(model, weights, CTranslate2's translator) of a random Transformer."""
    engine = pytest.importorskip("ctranslate2")
    config = toys.config(**{**dict(vocab_size=24, d_model=16, d_ff=20, num_heads=2, d_k=8, d_v=8), **request.param})
    params = toys.drawn(config)
    folder = tmp_path_factory.mktemp("exported") / "folder"
    ours.write(config, params, vocabulary, folder)
    return config.build(), params, engine.Translator(str(folder), inter_threads=1, intra_threads=1)


def pieces(vocabulary, sentences):
    return [vocabulary.source.pieces(ids[:-1]) for ids in sentences]


def test_ctranslate2_scores_as_we_do(exported, vocabulary):
    model, params, engine = exported
    rng = np.random.default_rng(0)
    pairs = [[[*rng.integers(2, 24, n).tolist(), EOS] for n in rng.integers(1, 8, 2)] for _ in range(20)]
    found = decode.forced_scores(model, params, toys.batch_of(pairs, rows=20))
    theirs = engine.score_batch(*(pieces(vocabulary, side) for side in zip(*pairs, strict=True)))
    np.testing.assert_allclose(found, [sum(each.log_probs) for each in theirs], atol=1e-4 * 9)


def test_ctranslate2_finds_the_outputs_that_we_find(exported, vocabulary):
    """Greedy, up to the limit: CTranslate2's beam search has other rules for when to end."""
    model, params, engine = exported
    rng = np.random.default_rng(1)
    sources = [[*rng.integers(2, 24, n).tolist(), EOS] for n in rng.integers(1, 9, 50)]
    found = dict(decode.decode(model, params, sources, DecodingConfig(beam=1, extra_length=3)))
    pad = vocabulary.source.pieces([0])
    for i, source in enumerate(sources):
        (theirs,) = engine.translate_batch(
            pieces(vocabulary, [source]),
            beam_size=1,
            min_decoding_length=0,
            max_decoding_length=len(source) + 3,
            suppress_sequences=[pad],
        )
        assert theirs.hypotheses[0] == vocabulary.source.pieces(found[i][0].tokens)


def test_quantised_weights_load_and_are_smaller(vocabulary, tmp_path):
    engine = pytest.importorskip("ctranslate2")
    config = toys.config(vocab_size=24, d_model=64, d_ff=512, num_heads=2, d_k=32, d_v=32)
    params, sizes = toys.drawn(config, scale=0.3), {}
    for quantization in ("float32", "float16", "int8"):
        ours.write(config, params, vocabulary, tmp_path / quantization, quantization)
        kept = engine.Translator(str(tmp_path / quantization), compute_type="default").compute_type
        assert kept.startswith("int8") == (quantization == "int8")
        sizes[quantization] = sum(path.stat().st_size for path in (tmp_path / quantization).iterdir())
    assert max(sizes["float16"], sizes["int8"]) < 0.55 * sizes["float32"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": "rope"}, "CTranslate2 has --model.positions sinusoid or learned only, not rope"),
        ({"attention_span": 3}, "CTranslate2 has --model.attention_span 0 only, not 3"),
        ({"d_v": 4}, "CTranslate2 has d_k = d_v = d_model / heads only, not d_k 8, d_v 4, 2 heads, d_model 16"),
    ],
)
def test_what_ctranslate2_cannot_express_is_refused(change, said, vocabulary, tmp_path):
    pytest.importorskip("ctranslate2")
    config = dataclasses.replace(toys.config(vocab_size=24, d_model=16, num_heads=2, d_k=8, d_v=8), **change)
    with pytest.raises(UserError, match=said):
        ours.write(config, {}, vocabulary, tmp_path / "folder")
    trees = TreeVocabulary(Alphabet(9, ("(S", ")S", "NN"), Linearisation(), {}))
    with pytest.raises(UserError, match="CTranslate2 takes runs that translate, not parsers"):
        ours.write(config, {}, Vocabularies(vocabulary.source, trees), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_folder_for_ctranslate2_is_written_whole_or_not_at_all(vocabulary, tmp_path):
    pytest.importorskip("ctranslate2")
    config = toys.config(vocab_size=24, d_model=16, d_ff=20, num_heads=2, d_k=8, d_v=8)
    params = toys.drawn(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/x: Not a directory"):
        ours.write(config, params, vocabulary, tmp_path / "file" / "x")
    stale = tmp_path / "folder.unfinished"
    stale.mkdir()
    (stale / "source_vocabulary.json").write_text("[]")
    ours.write(config, params, vocabulary, tmp_path / "folder")
    assert not (tmp_path / "folder" / "source_vocabulary.json").exists()


@pytest.mark.parametrize("change", [{}, {"positions": "learned", "max_length": 40}])
def test_ctranslate2_says_no_more_than_there_are_positions_for(change, vocabulary, tmp_path):
    """Of random weights, whose outputs go on to their limit."""
    pytest.importorskip("ctranslate2")
    config = toys.config(**{**dict(vocab_size=24, d_model=16, d_ff=20, num_heads=2, d_k=8, d_v=8), **change})
    ours.write(config, toys.drawn(config), vocabulary, tmp_path / "folder")
    how = DecodingConfig(beam=1, extra_length=3000, max_input=30)
    engine = ours.Engine(tmp_path / "folder", vocabulary, how, config.longest)
    ((_, (best, *_)),) = engine([[5, 6, EOS]])
    assert len(best.tokens) <= (config.longest or ours.LONGEST)
    if not change:
        with pytest.raises(UserError, match=r"--decoding.max_input 4000: .* takes at most 2048 tokens"):
            ours.Engine(tmp_path / "folder", vocabulary, dataclasses.replace(how, max_input=4000), None)


def test_without_ctranslate2_one_line_says_what_to_install(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    with pytest.raises(UserError, match=r"pip install 't2t\[ctranslate2\]'"):
        ours.write(toys.config(), {"params": jnp.zeros(1)}, vocabulary, tmp_path / "folder")
