"""A run's weights as a folder that `ctranslate2.Translator` loads: the engine many deploy translation models with.

And its beam search in place of ours. An optional part: `pip install 't2t[ctranslate2]'`.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from t2t import storage
from t2t.batch import EOS, PAD, UNK
from t2t.data.vocabulary import Vocabularies
from t2t.decode import DecodingConfig, Hypothesis
from t2t.errors import UserError
from t2t.interop import expressible
from t2t.models import Architecture
from t2t.models.transformer import TransformerConfig, sinusoids

LONGEST = 2048  # rows of the table of sinusoids: tokens that a sentence may have there

Quantization = Literal["float32", "float16", "int8"]


def write(
    model: Architecture, params: Any, vocabulary: Vocabularies, folder: Path, quantization: Quantization = "float32"
) -> None:
    """Writes the weights `params` of `model`, and the pieces of its vocabulary, into the new folder `folder`.

    Raises:
        UserError: ctranslate2 is not installed or cannot express the model; `folder` is there already, or cannot be
            written.
    """
    specs = _module("specs")
    config = expressible.check(model, vocabulary, "CTranslate2", {"positions": ("learned",), "norm": ("pre",)})
    if folder.exists():
        raise UserError(f"{folder} is there already")
    activation = getattr(specs.Activation, config.activation.upper())
    spec = specs.TransformerSpec.from_config(
        (config.num_layers, config.decoder_depth),
        config.num_heads,
        pre_norm=config.norm == "pre",
        activation=activation,
    )
    _fill(spec, config, params["params"])
    sources, targets = _pieces(vocabulary)
    spec.register_source_vocabulary(sources)
    spec.register_target_vocabulary(targets)
    spec.config.unk_token, spec.config.eos_token = targets[UNK], targets[EOS]
    spec.config.bos_token = spec.config.decoder_start_token = targets[PAD]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = config.norm_epsilon
    spec.validate()
    spec.optimize(quantization=quantization)
    with storage.replaced(folder) as place:
        place.mkdir(parents=True)
        try:
            spec.save(str(place))
        except RuntimeError as error:  # what it raises for a disk that is full
            raise UserError(f"CTranslate2 cannot write {folder}: {error}") from None


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"ctranslate2.{name}" if name else "ctranslate2")
    except ImportError:
        raise UserError("CTranslate2's folders are for ctranslate2: pip install 't2t[ctranslate2]'") from None


def _pieces(vocabulary: Vocabularies) -> tuple[list[str], list[str]]:
    """All pieces of sources and of targets, in the order of their ids."""
    source, target = vocabulary
    return source.pieces([*range(len(source))]), target.pieces([*range(len(target))])


def _fill(spec: Any, config: TransformerConfig, params: Any) -> None:
    """Sets every weight; CTranslate2 has those of linear maps as [out in], queries, keys and values joined."""
    params = _numpy(params)
    source = params["embedding"]
    target = params.get("target_embedding", source)
    for side, embeddings, ours in (
        (spec.encoder, spec.encoder.embeddings[0], source),
        (spec.decoder, spec.decoder.embeddings, target),
    ):
        zero = (np.arange(len(ours["table"])) == PAD) & (config.start == "zero")  # as input PAD is the zero vector
        embeddings.weight = np.where(zero[:, None], 0, ours["table"])
        side.position_encodings.encodings = ours.get("positions", sinusoids(LONGEST, config.d_model))
    spec.decoder.projection.weight = target.get("projection", target["table"])
    if config.output_bias:
        spec.decoder.projection.bias = target["output_bias"]
    if config.norm == "pre":
        _norm(spec.encoder.layer_norm, params["encoder_norm"])
        _norm(spec.decoder.layer_norm, params["decoder_norm"])
    for i in range(config.num_layers):
        layer = _layer(params["encoder"], i)
        _attention(spec.encoder.layer[i].self_attention, layer["self_attention"], layer["residual_1"], [3])
        _feed_forward(spec.encoder.layer[i].ffn, layer["feed_forward"], layer["residual_2"])
    for i in range(config.decoder_depth):
        layer = _layer(params["decoder"], i)
        _attention(spec.decoder.layer[i].self_attention, layer["self_attention"], layer["residual_1"], [3])
        _attention(spec.decoder.layer[i].attention, layer["cross_attention"], layer["residual_2"], [1, 2])
        _feed_forward(spec.decoder.layer[i].ffn, layer["feed_forward"], layer["residual_3"])


def _numpy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _numpy(part) for name, part in tree.items()}
    return np.array(tree, np.float32)  # a copy: quantising writes into it


def _layer(stacked: Any, i: int) -> Any:
    if isinstance(stacked, dict):
        return {name: _layer(part, i) for name, part in stacked.items()}
    return stacked[i]


def _attention(spec: Any, weights: Any, norm: Any, joined: list[int]) -> None:
    """`joined`: how many of queries, keys and values each of CTranslate2's linear maps has."""
    width = len(weights["query"]["weight"])
    maps = [weights[name] for name in ("query", "key", "value")]
    for linear, begin, size in zip(spec.linear, np.cumsum([0, *joined]), joined, strict=False):
        parts = maps[begin : begin + size]
        linear.weight = np.concatenate([each["weight"].reshape(width, -1).T for each in parts])
        if "bias" in parts[0]:
            linear.bias = np.concatenate([each["bias"].reshape(-1) for each in parts])
    spec.linear[-1].weight = weights["output"]["weight"].reshape(-1, width).T.copy()
    if "bias" in weights["output"]:
        spec.linear[-1].bias = weights["output"]["bias"]
    _norm(spec.layer_norm, norm)


def _feed_forward(spec: Any, weights: Any, norm: Any) -> None:
    for linear, name in ((spec.linear_0, "inner"), (spec.linear_1, "outer")):
        linear.weight, linear.bias = weights[name]["weight"].T.copy(), weights[name]["bias"]
    _norm(spec.layer_norm, norm)


def _norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = norm["scale"], norm["bias"]


# ------------------------------------------------------------------------------ Decoding there


class Engine:
    """`t2t.lines.Engine`: CTranslate2's beam search on this machine's CPU, its outputs ranked by our length penalty.

    It has other rules for when a search ends, and divides by another power of the length while it searches.
    """

    def __init__(self, folder: Path, vocabulary: Vocabularies, decoding: DecodingConfig, longest: int | None) -> None:
        """Loads what `write` wrote of a model that takes `longest` tokens; None: as many as the table there has rows.

        Raises:
            UserError: ctranslate2 is not installed, `folder` is none of a model of this vocabulary, or inputs may have
                more tokens than it takes.
        """
        if longest is None and decoding.max_input > LONGEST:
            raise UserError(f"--decoding.max_input {decoding.max_input}: {folder} takes at most {LONGEST} tokens")
        self._longest = longest or LONGEST
        engine = _module("")
        self._sources, self._targets = _pieces(vocabulary)
        for side, pieces in (("source", self._sources), ("target", self._targets)):
            if _listed(folder, side) != pieces:
                raise UserError(f"{folder} is of another vocabulary than the run: `t2t export` the run itself")
        try:
            self._translator = engine.Translator(str(folder), device="cpu")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"CTranslate2 cannot load {folder}: {error}") from None
        self._ids, self._decoding = {piece: i for i, piece in enumerate(self._targets)}, decoding

    def __call__(self, sources: list[list[int]]) -> Iterator[tuple[int, list[Hypothesis]]]:
        """(index, hypotheses, best first) of token lists with EOS at the end of each, those of one length together.

        A batch has one limit there, and ours goes by the length of the source.
        """
        lengths = np.array([len(source) for source in sources])
        for length in np.unique(lengths):
            chosen = np.flatnonzero(lengths == length)
            most = min(int(length) + self._decoding.extra_length, self._longest)
            found = self._search([sources[i] for i in chosen], most)
            for i, result in zip(chosen, found, strict=True):
                yield int(i), self._hypotheses(result)

    def _search(self, sources: list[list[int]], most: int) -> list[Any]:
        how = self._decoding
        return self._translator.translate_batch(
            [[self._sources[i] for i in source[:-1]] for source in sources],  # CTranslate2 adds EOS
            max_batch_size=how.rows,
            beam_size=how.beam,
            num_hypotheses=how.beam,
            length_penalty=how.alpha,
            max_decoding_length=most,
            min_decoding_length=0,  # an output may be empty
            max_input_length=0,
            suppress_sequences=[[self._targets[PAD]]],
            return_scores=True,
            return_end_token=True,
        )

    def _hypotheses(self, result: Any) -> list[Hypothesis]:
        alpha, found = self._decoding.alpha, []
        for tokens, score in zip(result.hypotheses, result.scores, strict=True):
            ids = [self._ids[token] for token in tokens]  # EOS at the end, unless the limit came first
            log_probability = score * len(ids) ** alpha
            score = log_probability / ((5 + len(ids)) / 6) ** alpha
            found.append(Hypothesis(ids[:-1] if ids[-1:] == [EOS] else ids, score))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


def _listed(folder: Path, side: str) -> list[str]:
    """The pieces that a folder of CTranslate2's lists for "source" or "target"."""
    for name in (f"{side}_vocabulary.json", "shared_vocabulary.json"):
        if (folder / name).is_file():
            try:
                return json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {folder / name}: {error}") from None
    raise UserError(f"{folder} is no folder of CTranslate2's: t2t export RUN --to ctranslate2 {folder}")
