"""Runs as Hugging Face has them and back: the same numbers, the same outputs."""

import dataclasses
import functools
import json
import math
import shutil
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import marian
import numpy as np
import optax
import pytest
import toys

from t2t import checkpoint, decode
from t2t import run as runs
from t2t.__main__ import main
from t2t.batch import EOS, UNK
from t2t.data.corpora import Text
from t2t.data.listed import ListedVocabulary
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.decode import DecodingConfig
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.interop import ctranslate2, hugging_face, safetensors

WORDS = ["ein", "eine", "haus", "am", "wald", "wind", "dein", "main", "saum"]
V = 24
KINDS = {
    "the paper's": {},
    "with all else": dict(bias=True, output_bias=True, activation="swish", norm_epsilon=1e-5),
    "two vocabularies": dict(target_vocab_size=V, activation="gelu", output_bias=True),
    "nothing shared": dict(projection="own", start="padding", decoder_layers=1, norm_epsilon=1e-5),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Of CTranslate2's: threads of so small products only wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


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


@functools.partial(jax.jit, static_argnames="model")
def logits(model, params, batch):
    return model.build().apply(params, batch.source, batch.target)


def numbers(folder, vocabulary, file="vocab.json"):
    """Marian's id of each of ours, <never> for PAD where it is no output but has a probability."""
    listed = json.loads((folder / file).read_text())
    pieces = vocabulary.source.pieces([*range(V)])
    return np.array([listed.get(hugging_face.SPARE, listed["<pad>"]), *(listed[piece] for piece in pieces[1:])])


# ------------------------------------------------------------------------------ Out


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def exported(request, vocabulary, tmp_path_factory):
    """(model's config, weights, folder, ours to Marian's ids of sources and of targets, pairs, our logits for them)."""
    model = config(**request.param)
    params = toys.drawn(model)
    folder = tmp_path_factory.mktemp("marian") / "folder"
    hugging_face.write(experiment(model), params, vocabulary, folder)
    target = numbers(folder, vocabulary, "target_vocab.json" if model.target_vocab_size else "vocab.json")
    source = target  # of the pieces that stand in sentences, which never are PAD
    batch = toys.batch_of(pairs_of(6), rows=6)
    return model, params, folder, source, target, batch, np.asarray(logits(model, params, batch))


def test_what_is_written_gives_our_logits(exported):
    model, _, folder, source_ids, target_ids, _, ours = exported
    ours = jax.nn.log_softmax(ours)
    about = json.loads((folder / "config.json").read_text())
    pad = about["decoder_start_token_id"]
    for (source, target), found in zip(pairs_of(6), np.asarray(ours), strict=True):
        theirs = marian.logits(folder, source_ids[source], [pad, *target_ids[target[:-1]]])
        theirs = np.asarray(jax.nn.log_softmax(jnp.asarray(theirs)))
        np.testing.assert_allclose(theirs[:, target_ids], found[: len(target)], atol=1e-4)
        assert theirs[:, pad].max() < -1e4 or model.start == "padding"


def test_what_is_written_comes_back(exported, vocabulary):
    model, params, folder, _, _, batch, ours = exported
    found = hugging_face.read(folder)
    assert found.model == dataclasses.replace(model, p_drop=found.model.p_drop, norm_epsilon=1e-5, max_length=1024)
    assert found.languages == ("en", "de")
    assert (found.decoding.beam, found.decoding.alpha) == (4, 0.6)
    if not model.target_vocab_size:
        assert found.vocabulary.fingerprint == vocabulary.fingerprint
    if model.norm_epsilon == 1e-5:
        jax.tree.map(np.testing.assert_array_equal, found.params, jax.tree.map(np.asarray, params))
    else:
        np.testing.assert_allclose(logits(found.model, found.params, batch), ours, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": "learned"}, "Hugging Face's Marian has --model.positions sinusoid only, not learned"),
        ({"positions": "rope"}, "Hugging Face's Marian has --model.positions sinusoid only, not rope"),
        ({"attention_span": 3}, "Hugging Face's Marian has --model.attention_span 0 only, not 3"),
        ({"norm": "pre"}, "Hugging Face's Marian has --model.norm post only, not pre"),
        ({"d_v": 4}, "Hugging Face's Marian has d_k = d_v = d_model / heads only"),
    ],
)
def test_what_marian_cannot_express_is_refused(change, said, vocabulary, tmp_path):
    with pytest.raises(UserError, match=said):
        hugging_face.write(experiment(config(**change)), {}, vocabulary, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ In


@pytest.fixture(scope="module")
def plain(vocabulary, tmp_path_factory):
    """A folder that is right."""
    folder = tmp_path_factory.mktemp("plain") / "folder"
    hugging_face.write(experiment(config()), toys.drawn(config()), vocabulary, folder)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bart"}, "holds a model of type 'bart'; Marian's are read"),
        ({"encoder_ffn_dim": 1}, "encoder_ffn_dim is 1, decoder_ffn_dim 20; here they are one"),
        ({"activation_function": "relu6"}, "no activation_function 'relu6'"),
        ({"normalize_before": True}, "norms after the last layers, but model.decoder.layer_norm is not there"),
        ({"normalize_embedding": True}, "normalize_embedding is not what MarianMTModel computes"),
        ({"decoder_start_token_id": 0}, "its outputs begin with another token than <pad>"),
        ({"tie_word_embeddings": False}, "is damaged: it has no lm_head.weight"),
        ({"share_encoder_decoder_embeddings": False}, "one of model and tokenizer has separate vocabularies"),
        ({"d_model": 18}, "is damaged: an embedding of"),
        ({"encoder_layers": 3, "decoder_layers": 3}, "is damaged: it has no model.encoder.layers.2"),
        ({"pad_token_id": 99, "decoder_start_token_id": 99}, "is damaged: index 99 is out of bounds"),
        ({"encoder_attention_heads": 0, "decoder_attention_heads": 0}, "is damaged: integer division"),
        ({"dropout": "much"}, "is damaged: could not convert"),
        ({"dropout": 1.0}, "is damaged: p_drop is a number"),
        ({"encoder_layers": 1}, "is damaged: its encoder has weights of 2 layers, and encoder_layers is 1"),
    ],
)
def test_a_folder_that_is_no_such_model_is_refused(change, said, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "folder")
    about = json.loads((plain / "config.json").read_text())
    (tmp_path / "folder/config.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=said):
        hugging_face.read(tmp_path / "folder")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.decoder.embed_tokens.weight"])
def test_what_is_shared_is_found_under_any_of_its_names(name, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "folder")
    path = tmp_path / "folder/model.safetensors"
    tensors = {name if each == "model.shared.weight" else each: x for each, x in safetensors.load(path).items()}
    content = safetensors.dumps(tensors)
    path.unlink()
    path.write_bytes(content)
    found = [hugging_face.read(folder).params for folder in (plain, tmp_path / "folder")]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_missing_and_damaged_weights_are_refused(plain, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no folder .*none: a model is imported from files"):
        hugging_face.read(tmp_path / "none")
    shutil.copytree(plain, tmp_path / "folder")
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


@pytest.fixture(scope="module")
def run(vocabulary, tmp_path_factory):
    """A run folder of random weights, of a model that comes back as the same: it is compiled once."""
    folder = tmp_path_factory.mktemp("run")
    model = config(norm_epsilon=1e-5)
    tree = dataclasses.replace(experiment(model), decoding=DecodingConfig(beam=2, extra_length=3))
    with runs.imported(folder / "run", tree, vocabulary, folder, "none") as new:
        checkpoint.save_params(new.checkpoints, 0, toys.drawn(model))
    return folder / "run"


GREEDY = ("--beam", "1", "--decoding.extra_length", "3")


def test_verbs_there_and_back(run, tmp_path, t2t):
    assert t2t("export", run, "--to", "hugging-face", tmp_path / "folder")[0] == 0
    assert t2t("import", "hugging-face", tmp_path / "folder", "--run", tmp_path / "back")[0] == 0
    said = [t2t("translate", each, *GREEDY, stdin=LINES) for each in (run, tmp_path / "back")]
    assert said[0][:2] == said[1][:2]
    assert (said[0][0], len(said[0][1].splitlines())) == (0, 4)
    code, _, err = t2t("import", "hugging-face", tmp_path / "folder", "--run", run)
    assert (code, "exists: choose another folder with --run" in err) == (2, True)
    code, _, err = t2t("export", run, "--to", "hugging-face", tmp_path / "x", "--quantization", "int8")
    assert (code, "--quantization goes with --to ctranslate2" in err) == (2, True)
    code, _, err = t2t("train", run)
    assert (code, f"is a run, not an experiment: t2t train NAME --init_from {run}" in err) == (2, True)


def test_translate_with_ctranslate2(run, tmp_path, t2t):
    pytest.importorskip("ctranslate2")
    folder = tmp_path / "ct2"
    assert t2t("export", run, "--to", "ctranslate2", folder)[0] == 0
    said, scores = [], []
    for more in ((), ("--with", "ctranslate2", folder)):
        code, out, _ = t2t("translate", run, *GREEDY, "--scores", *more, stdin=LINES)
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
        (("--with", "ctranslate2", folder, "--mesh.data", "2"), "--mesh.data does not go with --with"),
        (("--with", "ctranslate2", folder, "--decoding.max_input", "4000"), "--decoding.max_input 4000: "),
    ):
        code, _, err = t2t("translate", run, *more, stdin=LINES)
        assert (code, complaint in err) == (2, True)


# ------------------------------------------------------------------------------ Beside the real ones


def the_real_ones():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)  # as above
    return torch, transformers


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt, in a few steps, to copy up to seven pieces and to end."""
    model = config(d_model=32, d_ff=64, num_heads=4, p_drop=0.0)
    params, adam = toys.params(model, scale=0.0), optax.adam(6e-3)

    @jax.jit
    def update(params, state, batch):
        def loss(params):
            log_probs = jax.nn.log_softmax(model.build().apply(params, batch.source, batch.target))
            chosen = jnp.take_along_axis(log_probs, batch.target.tokens[..., None], -1)[..., 0]
            return -(chosen * (batch.target.segments != 0)).sum() / (batch.target.segments != 0).sum()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, value = jax.jit(adam.init)(params), None
    for step in range(150):
        batch = toys.batch_of([(source, source) for source, _ in pairs_of(64, seed=step + 1)], rows=64)
        params, state, value = update(params, state, batch)
    assert value < 1.0  # from 3.2: its outputs end
    return model, params


@pytest.fixture(scope="module")
def outputs(trained):
    """200 sources and the best output for each."""
    model, params = trained
    sources = [source for source, _ in pairs_of(200)]
    how = DecodingConfig(beam=3, alpha=0.0, extra_length=8, rows=32)
    found = dict(decode.decode(model.build(), params, sources, how))
    return sources, [found[i][0].tokens for i in range(len(sources))]


def test_transformers_beam_search_finds_our_outputs(trained, outputs, vocabulary, tmp_path):
    torch, transformers = the_real_ones()
    model, params = trained
    hugging_face.write(experiment(model), params, vocabulary, tmp_path / "folder")
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "folder").eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "folder")
    text = ["ein haus am wald", "wind saum, xq dein"]
    ids = numbers(tmp_path / "folder", vocabulary)
    assert tokenizer(text)["input_ids"] == [ids[each].tolist() for each in vocabulary.source.encode(text)]
    ours = {int(theirs): mine for mine, theirs in enumerate(ids)}
    sources, wanted = outputs
    every = np.asarray(logits(model, params, toys.batch_of([(each, each) for each in sources], rows=len(sources))))
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
            found = theirs(input_ids=target, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits
        np.testing.assert_allclose(found[..., ids], every[chosen, :length], atol=1e-4)
    assert tokenizer.decode(ids[wanted[0]], skip_special_tokens=True) == vocabulary.target.decode(wanted[0])


def test_ctranslate2_beam_search_finds_our_outputs(trained, outputs, vocabulary, tmp_path):
    pytest.importorskip("ctranslate2")
    model, params = trained
    ctranslate2.write(model, params, vocabulary, tmp_path / "folder")
    engine = ctranslate2.Engine(tmp_path / "folder", vocabulary, DecodingConfig(beam=3, alpha=0.0, extra_length=8), 64)
    sources, wanted = outputs
    found = dict(engine(sources))
    assert [found[i][0].tokens for i in range(len(sources))] == wanted


# ------------------------------------------------------------------------------ What transformers has written


SHAPES = {
    "swish, <pad> trained": dict(activation_function="swish", padding=True),
    "relu, no scale": dict(activation_function="relu", scale_embedding=False, encoder_layers=1, decoder_layers=1),
    "more encoder than decoder": dict(encoder_layers=3, decoder_layers=1),
    "two vocabularies": dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=14),
    "nothing shared": dict(tie_word_embeddings=False, padding=True),
    "pre-LN": dict(family="Pegasus", activation_function="swish", scale_embedding=False),
    "pickled": dict(pickled=True),
}
SIDES = {"layers": 2, "attention_heads": 2, "ffn_dim": 20}
PAD, END = 3, 5  # theirs


def written(folder, vocabulary, family="Marian", padding=False, pickled=False, **shape):
    """A model of transformers' making, weights and biases random, and its tokenizer's files: (model, tokenizer).

    Of pre-LN models it has no Marian any more: Pegasus computes what older versions' did.
    """
    torch, transformers = the_real_ones()
    sizes = {"vocab_size": V, "d_model": 16, "max_position_embeddings": 64, "pad_token_id": PAD, "eos_token_id": END}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDES.items()}
    more = {"decoder_start_token_id": PAD, "forced_eos_token_id": END, "scale_embedding": True}
    about = getattr(transformers, f"{family}Config")(**{**sizes, **sides, **more, **shape})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{'MTModel' if family == 'Marian' else 'ForConditionalGeneration'}")(about)
    with torch.no_grad():
        for name, x in [*model.eval().named_parameters(), *model.named_buffers()]:
            if "embed_positions" not in name:
                x += torch.randn(x.shape) * 0.5
        for table in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens):
            table.weight[PAD] *= padding  # zero, until transformers trains it
    model.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    separate = not getattr(about, "share_encoder_decoder_embeddings", True)
    if family != "Marian":
        flags = {"model_type": "marian", "normalize_before": True, "add_final_layer_norm": True}
        rewrite(folder / "config.json", **flags, scale_embedding=about.scale_embedding)
    (folder / "source.spm").write_bytes(vocabulary.source.model)
    (folder / "target.spm").write_bytes(vocabulary.source.model)
    pieces = ["<unk>", "▁haus", "▁am", "<pad>", "▁w", "</s>", *(f"p{i}" for i in range(V - 6))]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "target_vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces[:14])}))
    rewrite(folder / "tokenizer_config.json", tokenizer_class="MarianTokenizer", separate_vocabs=separate)
    names = {"target_vocab_file": folder / "target_vocab.json"}
    return model, transformers.MarianTokenizer.from_pretrained(folder, **names)


def rewrite(path, **changes):
    about = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_transformers_wrote_is_read(shape, vocabulary, tmp_path):
    """Scores, another export, and the tokenizer."""
    theirs, tokenizer = written(tmp_path / "theirs", vocabulary, **shape)
    torch, _ = the_real_ones()
    found = hugging_face.read(tmp_path / "theirs")
    theirs_of = np.array([3, 5, 0, 1, 2, 4, *range(6, V)])
    text = ["haus am x wald"]
    assert theirs_of[found.vocabulary.source.encode(text)[0]].tolist() == tokenizer(text)["input_ids"][0]
    rng = np.random.default_rng(0)
    pairs = [[[*rng.integers(3, 14, 4).tolist(), EOS] for _ in range(2)] for _ in range(5)]
    ours = jax.nn.log_softmax(logits(found.model, found.params, toys.batch_of(pairs, rows=5, length=5)))
    source, target = (torch.tensor(theirs_of[np.array(side)]) for side in zip(*pairs, strict=True))
    start = torch.full((5, 1), PAD)
    with torch.no_grad():
        wanted = theirs(input_ids=source, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits
    wanted = wanted.log_softmax(-1)[..., theirs_of[: ours.shape[-1]]]
    np.testing.assert_allclose(ours, wanted, atol=1e-4)

    again = {"params": found.params["params"]}
    if found.model.norm == "pre":
        with pytest.raises(UserError, match=r"Marian has --model\.norm post only, not pre"):
            hugging_face.write(experiment(found.model), again, found.vocabulary, tmp_path / "ours")
        return
    hugging_face.write(experiment(found.model), again, found.vocabulary, tmp_path / "ours")
    again = hugging_face.read(tmp_path / "ours")
    assert (again.model, again.vocabulary.fingerprint) == (found.model, found.vocabulary.fingerprint)
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


# ------------------------------------------------------------------------------ An OPUS-MT model, from import to export


PAIRS = [("ein haus", "wald"), ("am wald", "saum saum"), ("wind", "ein main"), ("dein saum am", "haus")]
SHORT = ("--beam", "3", "--alpha", "0", "--decoding.extra_length", "4")


@pytest.fixture(scope="module")
def opus(tmp_path_factory):
    """A folder like those of OPUS-MT, its model and tokenizer in transformers, what was imported, and files of text."""
    torch, transformers = the_real_ones()
    place = tmp_path_factory.mktemp("opus")
    for side, texts in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        (place / f"test.{side}").write_text("".join(f"{text}\n" for text in texts))
        (place / f"train.{side}").write_text("".join(f"{text}\n" for text in texts) * 8)
    cutters = [Vocabulary.train(Counter(WORDS[i:] + WORDS[:4]), 22 + i).model for i in (0, 1)]  # a model a side
    pieces = [Vocabulary(each, "").pieces([*range(3, 22)]) for each in cutters]
    listed = [*dict.fromkeys(["</s>", "<unk>", *pieces[0], *pieces[1]]), "<pad>"]  # and one list of pieces
    last = len(listed) - 1
    ids = {"pad_token_id": last, "decoder_start_token_id": last, "eos_token_id": 0, "forced_eos_token_id": 0}
    about = transformers.MarianConfig(
        vocab_size=last + 1,
        **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDES.items()},
        d_model=16,
        activation_function="swish",
        scale_embedding=True,
        static_position_embeddings=True,
        normalize_before=False,
        max_position_embeddings=512,
        **ids,
    )
    torch.manual_seed(1)
    model = transformers.MarianMTModel(about).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), ("final_logits_bias", model.final_logits_bias)]:
            x += torch.randn(x.shape) * 0.5 * ("embed_positions" not in name)
        model.model.shared.weight[last] = 0
    model.generation_config = transformers.GenerationConfig(
        bad_words_ids=[[last]], num_beams=6, max_length=512, renormalize_logits=True, **ids
    )
    folder = place / "opus-mt-en-de"
    model.save_pretrained(folder)
    for name, content in zip(("source.spm", "target.spm"), cutters, strict=True):
        (folder / name).write_bytes(content)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(listed)}))
    rewrite(folder / "tokenizer_config.json", source_lang="eng", target_lang="deu", model_max_length=512)
    assert main(["import", "hugging-face", str(folder), "--run", str(place / "run")]) == 0
    return place, model, transformers.MarianTokenizer.from_pretrained(folder)


def their_scores(model, tokenizer):
    """The log-probability of each pair, by teacher forcing, and its number of tokens."""
    found = []
    for source, target in PAIRS:
        labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"]
        loss = model(**tokenizer(source, return_tensors="pt"), labels=labels).loss
        found.append((-loss.item() * labels.shape[1], labels.shape[1]))
    return np.array(found).T


def test_an_imported_run_says_what_it_is(opus):
    _, tree, vocabulary = runs.load(opus[0] / "run")
    assert (tree.task.source, tree.task.target) == ("en", "de")
    assert (tree.decoding.beam, tree.decoding.alpha, tree.decoding.max_input) == (6, 1.0, 512)
    assert tree.model.output_bias and not vocabulary.shared


def test_scores_are_those_of_transformers(opus, t2t):
    place, model, tokenizer = opus
    code, out, _ = t2t("score", place / "run", place / "test.source", place / "test.target")
    assert code == 0
    np.testing.assert_allclose([float(line) for line in out.split()], their_scores(model, tokenizer)[0], atol=1e-3)


def test_an_imported_run_is_evaluated_and_reported(opus, t2t):
    """Outputs and perplexity are those of transformers."""
    place, model, tokenizer = opus
    code, _, err = t2t("evaluate", place / "run")
    assert (code, err) == (
        2,
        "t2t: this corpus names no file for its test split: give --task.corpus.test PAIRS.tsv, or SOURCES,TARGETS\n",
    )
    code, out, _ = t2t("report", place / "run")
    page = (place / "run/report.html").read_text()
    assert (code, f"t2t evaluate {place / 'run'} --task.corpus.test FILES" in page) == (0, True)
    files = f"{place / 'test.source'},{place / 'test.target'}"
    code, out, _ = t2t("evaluate", place / "run", "--task.corpus.test", files, *SHORT, "--json")
    assert code == 0
    found = json.loads(out)
    scores, lengths = their_scores(model, tokenizer)
    assert math.isclose(found["perplexity"], math.exp(-scores.sum() / lengths.sum()), rel_tol=1e-4)
    assert {"sacrebleu", "paper", "chrf"} <= found["scores"].keys()
    (evaluation,) = (place / "run/evaluations").iterdir()
    assert (evaluation / "hypotheses.txt").read_text().split("\n")[:-1] == their_outputs(model, tokenizer)
    code, out, _ = t2t("report", place / "run")
    assert (code, out.strip()) == (0, str(place / "run/report.html"))
    page = (place / "run/report.html").read_text()
    assert f"imported from {place / 'opus-mt-en-de'}" in page
    assert PAIRS[3][0] in page


def their_outputs(model, tokenizer):
    said = []
    for source, _ in PAIRS:
        ids = tokenizer(source, return_tensors="pt")["input_ids"]
        most = {"max_new_tokens": ids.shape[1] + 4, "max_length": None, "forced_eos_token_id": None}
        found = model.generate(ids, num_beams=3, length_penalty=0.0, renormalize_logits=False, **most)
        said.append(tokenizer.decode(found[0], skip_special_tokens=True))
    return said


def test_fine_tuning_lowers_the_loss_and_goes_back(opus, t2t):
    _, transformers = the_real_ones()
    place, model, tokenizer = opus
    files = {split: f"{place / split}.source,{place / split}.target" for split in ("train", "test")}
    words = ["--task.corpus.train", files["train"], "--task.corpus.dev", files["test"], "--task.cleaning.duplicates"]
    words += ["keep", "--batching.tokens", "128", "--batching.max_length", "16", "--batching.shapes", "1"]
    words += ["--optimizer.warmup_steps", "10", "--optimizer.scale", "0.1", "--train_steps", "20", "--log_every", "20"]
    words += ["--evaluate_every", "20", "--checkpoint_every", "20", "--mesh.data", "1", "--final_evaluation", "none"]
    code, _, err = t2t("train", "own_small", "--init_from", place / "run", "--run", place / "tuned", *words)
    assert (code, f"{place / 'tuned'}: a new run" in err) == (0, True)
    rows = [json.loads(line) for line in (place / "tuned/metrics.jsonl").read_text().splitlines()]
    scores, lengths = their_scores(model, tokenizer)
    (after,) = (row["loss"] for row in rows if row["split"] == "dev")
    assert after < 0.9 * -scores.sum() / lengths.sum()
    assert t2t("export", place / "tuned", "--to", "hugging-face", place / "back")[0] == 0
    back = [each.from_pretrained(place / "back") for each in (transformers.MarianMTModel, transformers.MarianTokenizer)]
    scores, lengths = their_scores(*back)
    assert math.isclose(after, -scores.sum() / lengths.sum(), rel_tol=1e-4)
