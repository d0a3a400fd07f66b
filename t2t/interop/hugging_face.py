"""A run as a folder that `transformers` loads as MarianMTModel with its MarianTokenizer, and such a folder as a run.

What OPUS-MT publishes are folders of this kind. Nothing but NumPy is needed, except for weights that PyTorch pickled.
"""

import contextlib
import dataclasses
import importlib
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from t2t import knobs, storage
from t2t.batch import EOS, PAD, UNK
from t2t.data.listed import ListedVocabulary
from t2t.data.vocabulary import Vocabularies, Vocabulary
from t2t.decode import DecodingConfig
from t2t.errors import UserError, unknown
from t2t.experiment import Experiment
from t2t.interop import expressible, marian, safetensors
from t2t.models.transformer import TransformerConfig

SPECIAL = {PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}
# Outputs begin with <pad>, whose embedding has to be zero there. But what a model has learnt of PAD as an output counts
# in its probabilities: that goes to a piece of this name, and <pad> gets a logit that leaves it no probability.
SPARE, NO_LOGIT = "<never>", -30_000.0
LONGEST = 512  # tokens: what folders of this kind say that their models take
SOURCE_MODEL, TARGET_MODEL, PIECES, TARGET_PIECES = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
ACTIVATIONS: dict[str, Any] = {"relu": "relu", "swish": "swish", "silu": "swish", "gelu": "gelu"}
# Codes of three letters, which newer OPUS-MT models have, as those of two that scores go by.
CODES = """
ben:bn cat:ca ces:cs cmn:zh deu:de ell:el eng:en est:et fin:fi fra:fr gle:ga guj:gu hin:hi hun:hu isl:is ita:it kan:kn
lav:lv lit:lt mal:ml mar:mr nld:nl pan:pa pol:pl por:pt ron:ro rus:ru slk:sk slv:sl spa:es swe:sv tam:ta tel:te zho:zh
"""
LANGUAGES = {code[:3]: code[4:] for code in CODES.split()}


# ------------------------------------------------------------------------------ Out


def write(experiment: Experiment, params: Any, vocabulary: Vocabularies, folder: Path) -> None:
    """Writes the new folder `folder` with the weights `params` of the experiment's model.

    Raises:
        UserError: Marian has no such model, `folder` is there already, or it cannot be written.
    """
    config = expressible.check(experiment.model, vocabulary, "Hugging Face's Marian")
    if folder.exists():
        raise UserError(f"{folder} is there already")
    params, output = params["params"], "target_embedding" if config.target_vocab_size else "embedding"
    two_meanings = (config.projection, config.start) == ("shared", "zero")
    numbers = Numbers.of(config, spare=two_meanings and bool(np.asarray(params[output]["table"][PAD]).any()))
    with storage.replaced(folder) as place:
        storage.write(place / "model.safetensors", safetensors.dumps(_tensors(config, params, numbers)))
        for name, content in _texts(experiment, vocabulary, numbers).items():
            storage.write(place / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        for name, side in ((SOURCE_MODEL, vocabulary.source), (TARGET_MODEL, vocabulary.target)):
            storage.write(place / name, cast(Vocabulary, side).sentencepiece)


class Numbers(NamedTuple):
    """In the order of Marian's ids, ours; None for what padding leaves behind."""

    source: list[int | None]
    target: list[int | None]
    shared: bool

    @classmethod
    def of(cls, config: TransformerConfig, spare: bool) -> "Numbers":
        """As Marian's own: end and unknown first, <pad> last. Two vocabularies need one id of <pad>: there it is 2."""
        more = [None] if spare else []
        if not config.target_vocab_size:
            every = [*range(EOS, config.vocab_size), *more, PAD]
            return cls(every, every, True)
        first = [EOS, UNK, PAD]
        rest = [[*range(3, size)] for size in (config.vocab_size, config.target_vocab_size)]
        return cls([*first, *rest[0]], [*first, *rest[1], *more], False)


def _tensors(config: TransformerConfig, params: Any, numbers: Numbers) -> marian.Tensors:
    tensors, own = marian.layers(config, params), config.projection == "own"
    zero = config.start == "zero"
    if numbers.shared:
        tensors["model.shared.weight"] = _rows(config, params["embedding"]["table"], numbers.source, zero)
    for stack, order in (("encoder", numbers.source), ("decoder", numbers.target)):
        if own or not numbers.shared:
            ours = params["embedding" if numbers.shared or stack == "encoder" else "target_embedding"]
            tensors[f"model.{stack}.embed_tokens.weight"] = _rows(config, ours["table"], order, zero)
    target = params["embedding" if numbers.shared else "target_embedding"]
    if own:
        tensors["lm_head.weight"] = _rows(config, target["projection"], numbers.target, False)
    bias = np.zeros(len(target["table"]), np.float32) if not config.output_bias else np.asarray(target["output_bias"])
    without = NO_LOGIT if None in numbers.target else bias[PAD]
    chosen = [bias[PAD] if i is None else without if i == PAD else bias[i] for i in numbers.target]
    tensors["final_logits_bias"] = np.array([chosen], np.float32)
    return tensors


def _rows(config: TransformerConfig, table: Any, order: list[int | None], zero: bool) -> np.ndarray:
    """The rows of one of our matrices in Marian's order; `zero`: that of <pad> is."""
    theirs = marian.table(config, table)
    padding = np.zeros_like(theirs[PAD]) if zero else theirs[PAD]
    return np.stack([theirs[PAD] if i is None else padding if i == PAD else theirs[i] for i in order])


def _texts(experiment: Experiment, vocabulary: Vocabularies, numbers: Numbers) -> dict[str, Any]:
    """What the folder's JSON files say."""
    names = [
        {SPARE if i is None else SPECIAL.get(i) or side.pieces([i])[0]: at for at, i in enumerate(order)}
        for side, order in ((vocabulary.source, numbers.source), (vocabulary.target, numbers.target))
    ]
    ids = {"pad_token_id": numbers.target.index(PAD), "eos_token_id": 0, "forced_eos_token_id": 0}
    ids |= {"decoder_start_token_id": ids["pad_token_id"], "bos_token_id": None}
    never = [[at] for at, i in enumerate(numbers.target) if i in (None, PAD)]
    decoding, task = experiment.decoding, experiment.task
    return {
        "config.json": {**_shape(experiment.model, numbers), **ids},
        "generation_config.json": {
            **ids,
            "bad_words_ids": never,
            "num_beams": decoding.beam,
            "length_penalty": decoding.alpha,
            "max_length": LONGEST,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer",
            "source_lang": getattr(task, "source", None),
            "target_lang": getattr(task, "target", None),
            "model_max_length": LONGEST,
            "separate_vocabs": not numbers.shared,
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": SPECIAL[i] for name, i in (("pad", PAD), ("eos", EOS), ("unk", UNK))},
        },
        PIECES: names[0],
        **({} if numbers.shared else {TARGET_PIECES: names[1]}),
    }


def _shape(config: Any, numbers: Numbers) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", marian.depth(config, side)),
            ("attention_heads", config.num_heads),
            ("ffn_dim", config.d_ff),
            ("layerdrop", 0.0),
        )
    }
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "vocab_size": len(numbers.source),
        "decoder_vocab_size": len(numbers.target),
        "share_encoder_decoder_embeddings": numbers.shared,
        "tie_word_embeddings": config.projection == "shared",
        "d_model": config.d_model,
        **sides,
        "activation_function": config.activation,
        "scale_embedding": True,
        "static_position_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "max_position_embeddings": LONGEST,
        "dropout": config.p_drop,
        "attention_dropout": config.p_attention,
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


# ------------------------------------------------------------------------------ In


class Found(NamedTuple):
    """What a folder holds."""

    model: TransformerConfig
    params: Any
    vocabulary: Vocabularies
    languages: tuple[str, str]  # of sources and targets; "" where the folder does not say
    decoding: DecodingConfig


def read(folder: Path) -> Found:
    """The model in a folder of a MarianMTModel.

    Its ids become ours: padding, end and unknown first, all others in their order.

    Raises:
        UserError: `folder` holds no such model, a damaged one, or one that cannot be expressed here; says why.
    """
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: a model is imported from files, which `hf download NAME --local-dir DIR` gets"
        )
    about, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json", {})
    if about.get("model_type") != "marian":
        raise UserError(f"{folder} holds a model of type {about.get('model_type')!r}; Marian's are read")
    try:
        found = _Marian(folder, about, tokenizer)
        model, params = found.weights()
        decoding = _decoding(folder, about)
    except KeyError as error:
        raise UserError(f"{folder} is damaged: it has no {error.args[0]}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{folder} is damaged: {error}") from None
    for part in (model, decoding):
        _check(folder, part)
    languages = [str(tokenizer.get(f"{side}_lang") or "") for side in ("source", "target")]
    source, target = (LANGUAGES.get(each, each) for each in languages)
    return Found(model, params, found.vocabulary(), (source, target), decoding)


def _check(folder: Path, part: TransformerConfig | DecodingConfig) -> None:
    """Raises UserError when a folder asks for a value that a knob cannot have: every verb would refuse the run."""
    try:
        knobs.check_all(type(part), vars(part))
    except UserError as error:
        raise UserError(f"{folder} is damaged: {str(error).removeprefix('--')}") from None


def _decoding(folder: Path, about: dict[str, Any]) -> DecodingConfig:
    """How the folder says that its model decodes; what it divides by is the length, ours is near to it."""
    said = {**about, **_json(folder / "generation_config.json", {})}
    beam, penalty = said.get("num_beams") or 1, said.get("length_penalty")
    most = min(LONGEST, about.get("max_position_embeddings", LONGEST))
    return DecodingConfig(int(beam), max(0.0, 1.0 if penalty is None else float(penalty)), max_input=most)


class _Marian:
    """A folder that is being read."""

    def __init__(self, folder: Path, about: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        self._folder, self._about = folder, about
        self._shared = bool(about.get("share_encoder_decoder_embeddings", True))
        if self._shared == bool(tokenizer.get("separate_vocabs")):
            raise UserError(f"{folder}: one of model and tokenizer has separate vocabularies, the other has not")
        ids = {PAD: about["pad_token_id"], EOS: about["eos_token_id"]}
        if about["decoder_start_token_id"] != ids[PAD]:
            raise UserError(f"{folder}: its outputs begin with another token than <pad>, as they do here")
        self._tied = bool(about.get("tie_word_embeddings", True))
        self._tensors = _tensors_in(folder)
        self._zero = not self._named("decoder")[ids[PAD]].any()  # training by transformers gives <pad> an embedding
        names, unk = (PIECES, PIECES if self._shared else TARGET_PIECES), _text(tokenizer.get("unk_token", "<unk>"))
        self._orders = [_Order.of(folder / name, ids, unk, self._tied and self._zero) for name in names]

    def _named(self, side: str) -> np.ndarray:
        """The embedding of a side, which is kept under one or more of its names."""
        one = self._shared and self._tied
        names = [f"model.{side}.embed_tokens.weight", *["model.shared.weight"] * self._shared]
        names += ["lm_head.weight"] * (one or (self._tied and side == "decoder"))
        names += ["model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"] * one
        return self._tensors[next((name for name in names if name in self._tensors), names[0])]

    def vocabulary(self) -> Vocabularies:
        """Ours, if it is one that came from here; else lists of pieces beside what cuts text into them."""
        cutters = [self._folder / name for name in (SOURCE_MODEL, TARGET_MODEL)]
        listed = [
            ListedVocabulary(order.pieces, _bytes(path), str(path))
            for order, path in zip(self._orders, cutters, strict=True)
        ]
        if self._shared and listed[0].fingerprint == listed[1].fingerprint:
            with contextlib.suppress(UserError):  # another numbering
                ours = Vocabulary(listed[0].sentencepiece, str(cutters[0]))
                if ours.pieces([*range(len(ours))])[UNK + 1 :] == [*listed[0].listed[UNK + 1 :]]:
                    return Vocabularies(ours, ours)
        return Vocabularies(*listed)

    def weights(self) -> tuple[TransformerConfig, Any]:
        """The model's knobs and its weights."""
        tensors, about, target = self._tensors, self._about, self._orders[1]
        bias = np.asarray(tensors.get("final_logits_bias", np.zeros((1, len(target.theirs)))), np.float32)[0]
        bias = bias[target.theirs]
        source_table, target_table = self._named("encoder"), self._named("decoder")
        one = self._shared and np.array_equal(source_table, target_table)
        model = self._model(0 if one else len(target.theirs), bool(bias.any()))
        self._check_layers(model)
        params: dict[str, Any] = {"embedding": {"table": self._table(model, source_table, self._orders[0])}}
        if not one:
            params["target_embedding"] = {"table": self._table(model, target_table, target)}
        params |= marian.from_layers(model, tensors)
        outputs = params["embedding" if one else "target_embedding"]
        if not self._tied:
            outputs["projection"] = self._table(model, tensors["lm_head.weight"], target)
        if model.output_bias:
            outputs["output_bias"] = bias
        if not about.get("scale_embedding", False):
            params = marian.without_scale(model, params)
        return model, {"params": params}

    def _model(self, targets: int, output_bias: bool) -> TransformerConfig:
        """The knobs; `targets`: how many pieces there are of targets, if these have an embedding of their own."""
        about, pre = self._about, bool(self._about.get("normalize_before"))
        if pre and "model.decoder.layer_norm.weight" not in self._tensors:
            there = "model.decoder.layer_norm is not there"
            raise UserError(f"{self._folder}: normalize_before asks for norms after the last layers, but {there}")
        for flag in ("normalize_embedding", *([] if pre else ["add_final_layer_norm"])):
            if about.get(flag):
                raise UserError(f"{self._folder}: {flag} is not what MarianMTModel computes: it normalises afterwards")
        if (activation := about.get("activation_function", "gelu")) not in ACTIVATIONS:
            raise unknown("activation_function", activation, ACTIVATIONS)
        heads, d_ff = (self._both(name) for name in ("attention_heads", "ffn_dim"))
        layers, decoder_layers = about["encoder_layers"], about["decoder_layers"]
        d_model = about["d_model"]
        model = TransformerConfig(
            vocab_size=len(self._orders[0].theirs),
            target_vocab_size=targets,
            num_layers=layers,
            decoder_layers=0 if decoder_layers == layers else decoder_layers,
            d_model=d_model,
            d_ff=d_ff,
            num_heads=heads,
            d_k=d_model // heads,
            d_v=d_model // heads,
            p_drop=float(about.get("dropout", 0.1)),
            p_attention=float(about.get("attention_dropout", 0.0)),
            activation=ACTIVATIONS[activation],
            norm="pre" if pre else "post",
            output_bias=output_bias,
            projection="shared" if self._tied else "own",
            start="zero" if self._zero else "padding",
            norm_epsilon=marian.EPSILON,
            dtype="float32",
        )
        return dataclasses.replace(model, bias=marian.has_biases(model, self._tensors))

    def _check_layers(self, model: TransformerConfig) -> None:
        """Raises UserError when there are weights of more layers than the folder says: it would be another model."""
        for stack in ("encoder", "decoder"):
            prefix, depth = f"model.{stack}.layers.", marian.depth(model, stack)
            there = [int(name[len(prefix) :].split(".")[0]) for name in self._tensors if name.startswith(prefix)]
            if max(there, default=-1) >= depth:
                more = f"weights of {max(there) + 1} layers, and {stack}_layers is {depth}"
                raise UserError(f"{self._folder} is damaged: its {stack} has {more}")

    def _both(self, name: str) -> int:
        """What is one knob here."""
        encoder, decoder = (self._about[f"{side}_{name}"] for side in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(f"{self._folder}: encoder_{name} is {encoder}, decoder_{name} {decoder}; here they are one")
        return encoder

    def _table(self, model: TransformerConfig, table: np.ndarray, order: "_Order") -> np.ndarray:
        """A matrix with a row a piece, its rows in our order."""
        if table.shape != (order.rows, model.d_model):
            raise ValueError(f"an embedding of {list(table.shape)} for {order.rows} pieces and d_model {model.d_model}")
        return marian.from_table(model, table)[order.theirs]


class _Order(NamedTuple):
    """Marian's id of each of ours, and the pieces."""

    theirs: np.ndarray
    pieces: tuple[str, ...]
    rows: int  # of Marian's matrices

    @classmethod
    def of(cls, path: Path, ids: dict[int, int], unk: str, spare: bool) -> "_Order":
        """From a vocab.json; the ids of padding and end, and the name of what is unknown; `spare`: see `SPARE`."""
        listed = _json(path)
        named = {i: piece for piece, i in listed.items()}
        first = [ids[PAD], ids[EOS], listed[unk]]
        if sorted(named) != [*range(len(listed))] or not {*first} <= named.keys():
            raise ValueError(f"{path.name} does not number its pieces from 0 on")
        rest = [i for i in range(len(listed)) if i not in first and not (spare and named[i] == SPARE)]
        pieces = (*SPECIAL.values(), *(named[i] for i in rest))
        first[PAD] = listed.get(SPARE, first[PAD]) if spare else first[PAD]
        return cls(np.array([*first, *rest]), pieces, len(listed))


def _text(token: Any) -> str:
    """A special token, which transformers writes in two ways."""
    return token["content"] if isinstance(token, dict) else token


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _json(path: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    if otherwise is not None and not path.exists():
        return otherwise
    try:
        found = json.loads(_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no names and values")
    return found


def _tensors_in(folder: Path) -> marian.Tensors:
    if (path := folder / "model.safetensors").exists():
        return safetensors.load(path)
    if not (path := folder / "pytorch_model.bin").exists():
        raise UserError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin")
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise UserError(f"{path} is read by PyTorch: pip install 't2t[hugging-face]'") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError):
        raise UserError(f"{path} is damaged: PyTorch cannot read it") from None
