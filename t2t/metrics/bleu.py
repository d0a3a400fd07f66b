"""BLEU and chrF by sacreBLEU, each under its own name and with its signature: a bare "BLEU" says too little."""

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from t2t.metrics import Score


def scores(hypotheses: list[str], references: list[str]) -> dict[str, Score]:
    """Corpus scores of detokenised text, one reference a line, in percent.

    `sacrebleu` is BLEU with sacreBLEU's defaults (13a tokens, cased, exponential smoothing); `chrf` is chrF2.
    """
    metrics = {"sacrebleu": BLEU(), "chrf": CHRF()}
    found = {}
    for name, metric in metrics.items():
        value = metric.corpus_score(hypotheses, [references]).score
        found[name] = Score(round(value, 4), str(metric.get_signature()))
    return found
