"""Runs as Hugging Face has them and back: the same numbers, the same outputs."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import marian
import numpy as np
import optax
import pytest
import toys

from t2t import checkpoint, decode
from t2t import run as runs
from t2t.batch import EOS, UNK
from t2t.data.corpora import Text
from t2t.data.listed import ListedVocabulary
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.decode import DecodingConfig
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.interop import ctranslate2, hugging_face

WORDS = ["ein", "eine", "haus", "am", "wald", "wind", "dein", "main", "saum"]
V = 24
KINDS = {
    "the paper's": {},
    "with all else": dict(bias=True, output_bias=True, activation="swish", norm_epsilon=1e-5),
    "two vocabularies": dict(target_vocab_size=V, activation="gelu", output_bias=True),
}


@pytest.fixture(scope="module")
def vocabulary():
    pieces = Vocabulary.train({word: 9 - i for i, word in enumerate(WORDS)}, V)
    return Vocabularies(pieces, pieces)


def config(**changes):
    return toys.config(**{**dict(vocab_size=V, d_model=16, d_ff=20, num_heads=2, d_k=8, d_v=8), **changes})


def experiment(model):
    return Experiment("toy", "nothing", Translation(Text(), "en", "de"), model=model)


def pairs_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [[[*rng.integers(3, V, n).tolist(), EOS] for n in rng.integers(1, 8, 2)] for _ in range(count)]


def numbers(folder, vocabulary, file="vocab.json"):
    """Marian's id of each of ours, <never> for PAD, which is no output but has a probability."""
    listed = json.loads((folder / file).read_text())
    pieces = vocabulary.source.pieces([*range(V)])
    return np.array([listed[hugging_face.SPARE], *(listed[piece] for piece in pieces[1:])])


# ------------------------------------------------------------------------------ Out


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def exported(request, vocabulary, tmp_path_factory):
    """(model's config, weights, folder, ours to Marian's ids of sources and of targets)."""
    model = config(**request.param)
    params = toys.params(model, scale=1.0)
    folder = tmp_path_factory.mktemp("marian") / "folder"
    hugging_face.write(experiment(model), params, vocabulary, folder)
    target = numbers(folder, vocabulary, "target_vocab.json" if model.target_vocab_size else "vocab.json")
    source = target  # of the pieces that stand in sentences, which never are PAD
    return model, params, folder, source, target


def test_what_is_written_gives_our_logits(exported):
    model, params, folder, source_ids, target_ids = exported
    pairs = pairs_of(6)
    batch = toys.batch_of(pairs, rows=6)
    ours = jax.nn.log_softmax(model.build().apply(params, batch.source, batch.target))
    pad = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    for (source, target), found in zip(pairs, np.asarray(ours), strict=True):
        theirs = marian.logits(folder, source_ids[source], [pad, *target_ids[target[:-1]]])
        theirs = np.asarray(jax.nn.log_softmax(jnp.asarray(theirs)))
        np.testing.assert_allclose(theirs[:, target_ids], found[: len(target)], atol=1e-4)
        assert theirs[:, pad].max() < -1e4


def test_what_is_written_comes_back(exported, vocabulary):
    model, params, folder, *_ = exported
    found = hugging_face.read(folder)
    assert found.model == dataclasses.replace(model, p_drop=found.model.p_drop, norm_epsilon=1e-5, max_length=1024)
    assert found.languages == ("en", "de")
    assert found.decoding.beam == 4
    if not model.target_vocab_size:
        assert found.vocabulary.fingerprint == vocabulary.fingerprint
    if model.norm_epsilon == 1e-5:
        jax.tree.map(np.testing.assert_array_equal, found.params, jax.tree.map(np.asarray, params))
    batch = toys.batch_of(pairs_of(6), rows=6)
    scores = [decode.forced_scores(m.build(), p, batch) for m, p in ((model, params), (found.model, found.params))]
    np.testing.assert_allclose(*scores, atol=1e-4 * 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": "learned"}, "Hugging Face's Marian has --model.positions sinusoid only, not learned"),
        ({"d_v": 4}, "Hugging Face's Marian has d_k = d_v = d_model / heads only"),
    ],
)
def test_what_marian_cannot_express_is_refused(change, said, vocabulary, tmp_path):
    with pytest.raises(UserError, match=said):
        hugging_face.write(experiment(config(**change)), {}, vocabulary, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ In


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bart"}, "holds a model of type 'bart'; Marian's are read"),
        ({"decoder_layers": 1}, "encoder_layers is 2, decoder_layers 1; here they are one"),
        ({"activation_function": "relu6"}, "no activation_function 'relu6'"),
        ({"normalize_before": True}, "normalize_before is not what MarianMTModel computes"),
        ({"decoder_start_token_id": 0}, "its outputs begin with another token than <pad>"),
        ({"tie_word_embeddings": False}, "its projection before the softmax is not the embedding of its targets"),
        ({"share_encoder_decoder_embeddings": False}, "one of model and tokenizer has separate vocabularies"),
        ({"d_model": 18}, "is damaged: an embedding of"),
        ({"encoder_layers": 3, "decoder_layers": 3}, "is damaged: it has no model.encoder.layers.2"),
    ],
)
def test_a_folder_that_is_no_such_model_is_refused(change, said, vocabulary, tmp_path):
    hugging_face.write(experiment(config()), toys.params(config()), vocabulary, tmp_path / "folder")
    about = json.loads((tmp_path / "folder/config.json").read_text())
    (tmp_path / "folder/config.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=said):
        hugging_face.read(tmp_path / "folder")


def test_missing_and_damaged_weights_are_refused(vocabulary, tmp_path, monkeypatch):
    hugging_face.write(experiment(config()), toys.params(config()), vocabulary, tmp_path / "folder")
    path = tmp_path / "folder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged: it is no whole file of the format safetensors"):
        hugging_face.read(tmp_path / "folder")
    path.rename(tmp_path / "folder/pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"is read by PyTorch: pip install 't2t\[hugging-face\]'"):
        hugging_face.read(tmp_path / "folder")


def test_a_listed_vocabulary_cuts_numbers_and_joins(vocabulary):
    cut = vocabulary.source.pieces(vocabulary.source.encode(["am haus"])[0][:-1])
    assert len(set(cut)) == len(cut) > 1
    model = vocabulary.source.model
    listed = ListedVocabulary(("<pad>", "</s>", "<unk>", ">>de<<", *cut), model, "here")
    ids = [*range(4, 4 + len(cut))]
    assert listed.encode([">>de<<am haus", "am haus"]) == [[3, *ids, EOS], [*ids, EOS]]
    assert UNK in listed.encode(["haus xq"])[0]
    assert listed.decode([*ids, UNK, *ids, EOS, 3]) == "am haus am haus"
    again = ListedVocabulary.loads(listed.model, "there")
    assert (again.listed, again.fingerprint) == (listed.listed, listed.fingerprint)
    with pytest.raises(UserError, match="there is not a list of pieces"):
        ListedVocabulary.loads(b"{}", "there")


# ------------------------------------------------------------------------------ The command line


LINES = b"ein haus am wald\n\nwind saum dein\nmain\n"


@pytest.fixture
def run(vocabulary, tmp_path):
    """A run folder of random weights."""
    model = config(max_length=64)
    tree = dataclasses.replace(experiment(model), decoding=DecodingConfig(beam=2, extra_length=3))
    with runs.imported(tmp_path / "run", tree, vocabulary, tmp_path, "none") as new:
        checkpoint.save_params(new.checkpoints, 0, toys.params(model, scale=1.0))
    return tmp_path / "run"


def test_verbs_there_and_back(run, tmp_path, t2t):
    assert t2t("export", run, "--to", "hugging-face", tmp_path / "folder")[0] == 0
    assert t2t("import", "hugging-face", tmp_path / "folder", "--run", tmp_path / "back")[0] == 0
    greedy = ("--beam", "1", "--decoding.extra_length", "3")
    said = [t2t("translate", each, *greedy, stdin=LINES) for each in (run, tmp_path / "back")]
    assert said[0][:2] == said[1][:2]
    assert (said[0][0], len(said[0][1].splitlines())) == (0, 4)
    code, _, err = t2t("import", "hugging-face", tmp_path / "folder", "--run", run)
    assert (code, "exists: choose another folder with --run" in err) == (2, True)
    code, _, err = t2t("export", run, "--to", "hugging-face", tmp_path / "x", "--quantization", "int8")
    assert (code, "--quantization goes with --to ctranslate2" in err) == (2, True)


def test_translate_with_ctranslate2(run, tmp_path, t2t):
    pytest.importorskip("ctranslate2")
    folder = tmp_path / "ct2"
    assert t2t("export", run, "--to", "ctranslate2", folder)[0] == 0
    said, scores = [], []
    for more in ((), ("--with", "ctranslate2", folder)):
        code, out, _ = t2t("translate", run, "--beam", "1", "--scores", *more, stdin=LINES)
        rows = [line.split("\t") for line in out.split("\n")]
        assert (code, len(rows)) == (0, 5)
        said.append([row[-1] for row in rows])
        scores.append([float(row[0]) for row in rows if len(row) == 2])
    assert said[0] == said[1]
    np.testing.assert_allclose(*scores, atol=1e-3)
    for more, complaint in (
        (("--with", "fairseq", folder), "no engine (--with) 'fairseq'"),
        (("--with", "ctranslate2", tmp_path), "is no folder of CTranslate2's"),
        (("--with", "ctranslate2", folder, "--average", "2"), "--average does not go with --with"),
    ):
        code, _, err = t2t("translate", run, *more, stdin=LINES)
        assert (code, complaint in err) == (2, True)


# ------------------------------------------------------------------------------ Beside the real ones


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt, in a few steps, to copy up to seven pieces and to end."""
    model = config(d_model=32, d_ff=64, num_heads=4, p_drop=0.0)
    params, adam = toys.params(model, scale=0.0), optax.adam(3e-3)

    @jax.jit
    def update(params, state, batch):
        def loss(params):
            log_probs = jax.nn.log_softmax(model.build().apply(params, batch.source, batch.target))
            chosen = jnp.take_along_axis(log_probs, batch.target.tokens[..., None], -1)[..., 0]
            return -(chosen * (batch.target.segments != 0)).sum() / (batch.target.segments != 0).sum()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, value = adam.init(params), None
    for step in range(300):
        batch = toys.batch_of([(source, source) for source, _ in pairs_of(64, seed=step + 1)], rows=64)
        params, state, value = update(params, state, batch)
    assert value < 1.0  # from 3.2: its outputs end
    return model, params


@pytest.fixture(scope="module")
def outputs(trained):
    """200 sources and the best output for each."""
    model, params = trained
    sources = [source for source, _ in pairs_of(200)]
    found = dict(decode.decode(model.build(), params, sources, DecodingConfig(beam=3, alpha=0.0, extra_length=8)))
    return sources, [found[i][0].tokens for i in range(len(sources))]


def test_transformers_beam_search_finds_our_outputs(trained, outputs, vocabulary, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = trained
    hugging_face.write(experiment(model), params, vocabulary, tmp_path / "folder")
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "folder").eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "folder")
    text = ["ein haus am wald", "wind saum, xq dein"]
    ids = numbers(tmp_path / "folder", vocabulary)
    assert tokenizer(text)["input_ids"] == [ids[each].tolist() for each in vocabulary.source.encode(text)]
    ours = {int(theirs): mine for mine, theirs in enumerate(ids)}
    sources, wanted = outputs
    for length in {len(source) for source in sources}:
        chosen = [i for i, source in enumerate(sources) if len(source) == length]
        with torch.no_grad():
            found = theirs.generate(
                torch.tensor(np.array([ids[sources[i]] for i in chosen])),
                num_beams=3,
                length_penalty=0.0,
                max_new_tokens=length + 8,
                max_length=None,
                forced_eos_token_id=None,
            )
        pad = tokenizer.pad_token_id
        said = [[ours[int(i)] for i in row if i not in (pad, tokenizer.eos_token_id)] for row in found]
        assert said == [wanted[i] for i in chosen]
        with torch.no_grad():
            target = torch.tensor(np.array([ids[sources[i]] for i in chosen]))
            start = torch.full((len(chosen), 1), pad)
            logits = theirs(input_ids=target, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits
        batch = toys.batch_of([(sources[i], sources[i]) for i in chosen], rows=len(chosen))
        mine = model.build().apply(params, batch.source, batch.target)[:, :length]
        np.testing.assert_allclose(logits[..., ids], mine, atol=1e-4)
    assert tokenizer.decode(ids[wanted[0]], skip_special_tokens=True) == vocabulary.target.decode(wanted[0])


def test_ctranslate2_beam_search_finds_our_outputs(trained, outputs, vocabulary, tmp_path):
    pytest.importorskip("ctranslate2")
    model, params = trained
    ctranslate2.write(model, params, vocabulary, tmp_path / "folder")
    engine = ctranslate2.Engine(tmp_path / "folder", vocabulary, DecodingConfig(beam=3, alpha=0.0, extra_length=8))
    sources, wanted = outputs
    found = dict(engine(sources))
    assert [found[i][0].tokens for i in range(len(sources))] == wanted


SHAPES = {
    "shared, swish": dict(activation_function="swish", scale_embedding=True),
    "shared, relu, no scale": dict(
        activation_function="relu", scale_embedding=False, encoder_layers=1, decoder_layers=1
    ),
    "separate, gelu": dict(activation_function="gelu", share_encoder_decoder_embeddings=False, decoder_vocab_size=14),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_transformers_wrote_is_read(shape, vocabulary, tmp_path):
    """A model of its own making, weights and biases random: scores, another export, and the tokenizer."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"vocab_size": V, "d_model": 16, "max_position_embeddings": 64, "pad_token_id": 3, "eos_token_id": 5}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDES.items()}
    about = transformers.MarianConfig(
        **{**sizes, **sides, "decoder_start_token_id": 3, "forced_eos_token_id": 5, "scale_embedding": True, **shape}
    )
    theirs = transformers.MarianMTModel(about).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if "embed_positions" not in name:
                x += torch.randn(x.shape) * 0.5
        for table in (theirs.model.encoder.embed_tokens, theirs.model.decoder.embed_tokens):
            table.weight[3] = 0
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    (folder / "source.spm").write_bytes(vocabulary.source.model)
    (folder / "target.spm").write_bytes(vocabulary.source.model)
    pieces = ["<unk>", "▁haus", "▁am", "<pad>", "▁w", "</s>", *(f"p{i}" for i in range(V - 6))]
    separate = not about.share_encoder_decoder_embeddings
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "target_vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces[:14])}))
    names = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))

    found = hugging_face.read(folder)
    theirs_of = np.array([3, 5, 0, 1, 2, 4, *range(6, V)])
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder, target_vocab_file=folder / "target_vocab.json")
    text = ["haus am x wald"]
    assert theirs_of[found.vocabulary.source.encode(text)[0]].tolist() == tokenizer(text)["input_ids"][0]
    rng = np.random.default_rng(0)
    pairs = [[[*rng.integers(3, 14, 4).tolist(), EOS] for _ in range(2)] for _ in range(5)]
    batch = toys.batch_of(pairs, rows=5, length=5)
    scores = decode.forced_scores(found.model.build(), found.params, batch)
    source, target = (torch.tensor(theirs_of[np.array(side)]) for side in zip(*pairs, strict=True))
    with torch.no_grad():
        wanted = [-theirs(input_ids=s[None], labels=t[None]).loss * 5 for s, t in zip(source, target, strict=True)]
    np.testing.assert_allclose(scores, wanted, atol=5e-4)

    hugging_face.write(experiment(found.model), {"params": found.params["params"]}, found.vocabulary, tmp_path / "ours")
    again = hugging_face.read(tmp_path / "ours")
    assert (again.model, again.vocabulary.fingerprint) == (found.model, found.vocabulary.fingerprint)
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


SIDES = {"layers": 2, "attention_heads": 2, "ffn_dim": 20}
