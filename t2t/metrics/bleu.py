"""Six readings of the same outputs, each under its own name and with its signature: a bare "BLEU" says too little.

    sacrebleu     BLEU of 13a tokens, cased: sacreBLEU's default
    sacrebleu_lc  the same of lower-cased text
    intl          BLEU of sacreBLEU's `intl` tokens, cased
    paper         the paper's: multi-bleu of `PaperTokens`, cased
    tokenised_lc  what is published for Multi30k: multi-bleu of `Multi30kTokens` of lower-cased text
    chrf          chrF2

multi-bleu is BLEU without smoothing: a text without a single match of four tokens scores 0.
"""

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer

from t2t.errors import unknown
from t2t.metrics import Score, interval

HYPHEN = re.compile(r"(\S)-(\S)")
QUOTES = str.maketrans({**dict.fromkeys("„“”‟«»", '"'), **dict.fromkeys("‚‘’‛‹›", "'")})


class PaperTokens(BaseTokenizer):
    """Tokens as in the authors' get_ende_bleu.sh: unicode punctuation replaced, Moses' tokeniser, hyphens split.

    The tokeniser is Moses' as it was in 2017: since the end of 2018 it splits off the last full stop of every line.
    Hyphens are split, `a-b` to `a ##AT##-##AT## b`, from English into German alone, where the authors did so.

    Departure: typographic quotes become plain ones on both sides. The authors' script compares with a reference whose
    quotes are plain, and leaves an opening quote of German („) in outputs as it is.
    """

    def __init__(self, target: str, split_hyphens: bool):
        self.moses, self.punctuation = _moses(target)
        self.split_hyphens = split_hyphens

    def signature(self) -> str:
        """What stands behind "tok:" in the metric's signature."""
        split = "yes" if self.split_hyphens else "no"
        return f"{_named(self.moses.lang)}|norm:unicode-punctuation+quotes|at:{split}"

    def __call__(self, line: str) -> str:
        """The line's tokens between spaces."""
        plain = self.punctuation.replace_unicode_punct(line.translate(QUOTES))
        tokens = self.moses.tokenize(plain, return_str=True)
        # As Perl's s///g: a match begins where the last one ended, so that of a-b-c only the first hyphen is split.
        return HYPHEN.sub(r"\1 ##AT##-##AT## \2", tokens) if self.split_hyphens else tokens


class Multi30kTokens(BaseTokenizer):
    """Tokens as in the data set's task1-tokenize.sh: Moses' normalize-punctuation and tokeniser of 2017."""

    def __init__(self, target: str):
        self.moses, self.punctuation = _moses(target)

    def signature(self) -> str:
        """What stands behind "tok:" in the metric's signature."""
        return f"{_named(self.moses.lang)}|norm:punctuation-{self.moses.lang}|at:no"

    def __call__(self, line: str) -> str:
        """The line's tokens between spaces."""
        # Perl's lines keep their end, and to a rule on the full stop before a quote it counts as one more character.
        return self.moses.tokenize(self.punctuation.normalize(f"{line}\n"), return_str=True)


def _moses(language: str) -> Any:
    from sacremoses import MosesPunctNormalizer, MosesTokenizer  # half a second, for those who score only

    return MosesTokenizer(language), MosesPunctNormalizer(language, perl_parity=True)


def _named(language: str) -> str:
    return f"moses-{language}-sacremoses-{importlib.metadata.version('sacremoses')}"


def languages() -> list[str]:
    """The codes of the languages that Moses' tokeniser has rules for."""
    from sacremoses.corpus import NonbreakingPrefixes

    return sorted(set(NonbreakingPrefixes().available_langs.values()))


def check_languages(target: str, source: str) -> None:
    """Raises UserError unless Moses has rules for `target`, and `source` is such a language or any two-letter code."""
    known = languages()
    if target not in known:
        raise unknown("language", target, known)
    if source not in known and not re.fullmatch("[a-z]{2}", source):
        raise unknown("language", source, known)


def _multi_bleu(tokens: BaseTokenizer, lowercase: bool) -> BLEU:
    metric = BLEU(tokenize="none", smooth_method="none", lowercase=lowercase, force=True)
    metric.tokenizer, metric.tokenizer_signature = tokens, tokens.signature()
    return metric


def _metrics(target: str, source: str) -> dict[str, Metric]:
    moses: dict[str, Metric] = {}
    if target in languages():
        split_hyphens = (source, target) == ("en", "de")
        moses["paper"] = _multi_bleu(PaperTokens(target, split_hyphens), lowercase=False)
        moses["tokenised_lc"] = _multi_bleu(Multi30kTokens(target), lowercase=True)
    return {
        "sacrebleu": BLEU(),
        "sacrebleu_lc": BLEU(lowercase=True, force=True),  # force: what is odd about the text has been said once
        "intl": BLEU(tokenize="intl", force=True),
        **moses,
        "chrf": CHRF(),
    }


def scores(hypotheses: Sequence[str], references: Sequence[str], target: str, source: str) -> dict[str, Score]:
    """All readings, in percent, of detokenised text with one reference a line, one line at least.

    `target` and `source` are languages. Where Moses' tokeniser has no rules for the target, `paper` and
    `tokenised_lc` are left out: they would be somebody else's.
    """
    return {name: _score(metric, hypotheses, references) for name, metric in _metrics(target, source).items()}


def _score(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    def value(total: np.ndarray) -> float:
        return round(float(metric._compute_score_from_stats(total.tolist()).score), 4)

    statistics = np.array(metric._extract_corpus_statistics(hypotheses, [references]), float)
    return Score(value(statistics.sum(0)), str(metric.get_signature()), *interval(statistics, value))


class Comparison(NamedTuple):
    """One reading of two outputs, the second's less the first's, and how likely so large a difference is by chance."""

    first: float
    second: float
    difference: float
    p: float
    signature: str


def compare(
    first: Sequence[str], second: Sequence[str], references: Sequence[str], target: str, source: str
) -> dict[str, Comparison]:
    """All readings of two outputs for the same source, tested by sacreBLEU's paired approximate randomisation.

    Its p is the share of shuffles, each swapping some of the outputs between the two, that differ by more than these
    two do. Outputs that hardly differ would look certain, for few shuffles change anything: p is at least the share of
    those that leave all as it is, or swap all; for scores that are equal it is 1.
    """
    changed = sum(a != b for a, b in zip(first, second, strict=True))
    least = 2.0 ** (1 - changed)
    found = {}
    for name, metric in _metrics(target, source).items():
        # One test a metric: within one, sacreBLEU tells metrics apart by a name that all our BLEUs share.
        signatures, results = PairedTest([("", first), ("", second)], {name: metric}, [references], "ar")()
        ((key, signature),) = signatures.items()
        a, b = (each for each in results[key] if isinstance(each, Result))
        p = 1.0 if a.score == b.score else max(least, b.p_value or 0.0)
        rounded = [round(float(x), 4) for x in (a.score, b.score, b.score - a.score)]
        found[name] = Comparison(rounded[0], rounded[1], rounded[2], p, str(signature))
    return found
