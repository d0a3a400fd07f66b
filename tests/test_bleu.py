"""The readings of a score against plain Python and against sacreBLEU, and the verbs `bleu` and `compare`."""

import collections
import gzip
import importlib.metadata
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from sacrebleu import significance

from t2t import run as runs
from t2t.data.prepare import Sizes, prepare
from t2t.data.translation import Translation
from t2t.experiment import override
from t2t.metrics import bleu

NAMES = ["sacrebleu", "sacrebleu_lc", "intl", "paper", "tokenised_lc", "chrf"]
WORDS = ["Haus", "das", "alt-neue", "U-Bahn-Netz", "grün", "steht", "Straße", "am", "er", "weiß"]


def multi_bleu(hypotheses, references):
    """BLEU of lists of tokens as multi-bleu.perl has it: clipped matches, closest length, nothing smoothed."""
    matched, total = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for n in range(4):
            ours, theirs = (
                collections.Counter(tuple(side[i : i + n + 1]) for i in range(len(side) - n))
                for side in (hypothesis, reference)
            )
            matched[n] += sum((ours & theirs).values())
            total[n] += sum(ours.values())
    if not all(matched):
        return 0.0
    lengths = sum(map(len, references)), sum(map(len, hypotheses))
    penalty = min(1.0, math.exp(1 - lengths[0] / lengths[1]))
    return 100 * penalty * math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4)


def sentences(count, seed=0):
    """References as lists of words, and outputs in which some are lost, swapped or written small."""
    rng = np.random.default_rng(seed)
    references, hypotheses = [], []
    for length in rng.integers(5, 15, count):
        words = [WORDS[i] for i in rng.integers(0, len(WORDS), length)]
        kept = [word.lower() if rng.random() < 0.1 else word for word in words if rng.random() > 0.1]
        i = int(rng.integers(0, max(1, len(kept) - 1)))
        references.append(words)
        hypotheses.append([*kept[:i], *reversed(kept[i : i + 2]), *kept[i + 2 :]])
    return hypotheses, references


def text(lists):
    return [f"{' '.join(words)}." for words in lists]


def tokens(lists, at="-"):
    """The tokens of `text`: a hyphen splits a word into two with a token `at` between, and three words' first alone."""
    return [[*(piece for word in words for piece in word.replace("-", at).split()), "."] for words in lists]


def scores(hypotheses, references, target="de", source="en"):
    return bleu.scores(hypotheses, references, target, source)


# ------------------------------------------------------------------------------ The readings


def test_the_papers_reading_is_multi_bleu_of_split_tokens():
    hypotheses, references = sentences(60)
    found = scores(text(hypotheses), text(references))
    split, whole = (multi_bleu(tokens(hypotheses, at), tokens(references, at)) for at in (" ##AT##-##AT## ", "-"))
    assert 20 < whole < split < 90
    assert found["paper"].score == pytest.approx(split, abs=1e-4)
    french = scores(text(hypotheses), text(references), target="fr")
    assert french["paper"].score == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(("target", "source", "split"), [("de", "en", True), ("de", "fr", False), ("en", "de", False)])
def test_hyphens_are_split_from_english_into_german_alone(target, source, split):
    hypotheses, references = sentences(30)
    at = " ##AT##-##AT## " if split else "-"
    found = scores(text(hypotheses), text(references), target, source)["paper"]
    assert found.score == pytest.approx(multi_bleu(tokens(hypotheses, at), tokens(references, at)), abs=1e-4)
    assert f"|at:{'yes' if split else 'no'}|" in found.signature


def test_the_published_reading_is_multi_bleu_of_small_letters():
    hypotheses, references = sentences(60)
    small = [[[word.lower() for word in words] for words in side] for side in (hypotheses, references)]
    expected = multi_bleu(*map(tokens, small))
    assert scores(text(hypotheses), text(references))["tokenised_lc"].score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("der rot-grüne Ball", "der rot ##AT##-##AT## grüne Ball"),
        ("U-Bahn-Netz", "U ##AT##-##AT## Bahn ##AT##-##AT## Netz"),
        ("a-b-c", "a ##AT##-##AT## b-c"),  # a letter belongs to one match alone
        ("a - b -c d-", "a - b -c d-"),
        ("1999-2000", "1999 ##AT##-##AT## 2000"),
        ("von 1999–2000", "von 1999 – 2000"),  # a dash is no hyphen
        ("Er sagt: „Ja, gut.“", "Er sagt : &quot; Ja , gut . &quot;"),
        ("« Ja » ‚nein‘ und’s", "&quot; Ja &quot; &apos; nein &apos; und &apos; s"),
        ("Was…？", "Was ... ?"),
        ("z.B. 3.000,5 & mehr", "z.B. 3.000,5 &amp; mehr"),
        ("", ""),
    ],
)
def test_tokens_of_the_paper(line, expected):
    assert bleu.PaperTokens("de", split_hyphens=True)(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ein rot-grüner ball", "ein rot-grüner ball"),
        ("er sagt „ja“ – gut", "er sagt &quot; ja &quot; - gut"),
        ('er sagt: "ja."', "er sagt : &quot; ja &quot; ."),  # as Moses' script has it for German
    ],
)
def test_tokens_of_multi30k(line, expected):
    assert bleu.Multi30kTokens("de")(line) == expected


def test_typographic_quotes_cost_nothing_in_the_papers_reading():
    plain = ['Er sagt: "Das geht so nicht", und geht.', "Was soll's, sagt sie nun."]
    written = ["Er sagt: „Das geht so nicht“, und geht.", "Was soll’s, sagt sie nun."]
    french = ["Er sagt: «Das geht so nicht», und geht.", "Was soll’s, sagt sie nun."]
    for hypotheses in (written, french):
        found = scores(hypotheses, plain)
        assert found["paper"].score == found["tokenised_lc"].score == 100
        assert found["sacrebleu"].score < 100


def test_case_counts_where_it_says_so():
    hypotheses, references = sentences(40)
    found = scores([line.upper() for line in text(hypotheses)], [line.upper() for line in text(references)])
    mixed = scores([line.lower() for line in text(hypotheses)], text(references))
    for name in ("sacrebleu_lc", "tokenised_lc"):
        assert mixed[name].score == pytest.approx(scores(text(hypotheses), text(references))[name].score, abs=1e-4)
        assert "|case:lc|" in mixed[name].signature
    for name in ("sacrebleu", "intl", "paper", "chrf"):
        assert mixed[name].score < found[name].score
        assert "|case:mixed|" in mixed[name].signature


def test_nothing_is_smoothed_in_multi_bleu():
    found = scores(["Das Haus steht."], ["Ein Haus stand."])
    assert found["paper"].score == found["tokenised_lc"].score == 0 < found["sacrebleu"].score


def test_sacrebleus_readings_are_its_own():
    hypotheses, references = map(text, sentences(50))
    found = scores(hypotheses, references)
    expected = {
        "sacrebleu": sacrebleu.corpus_bleu(hypotheses, [references]),
        "sacrebleu_lc": sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True),
        "intl": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="intl"),
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]),
    }
    for name, value in expected.items():
        assert found[name].score == pytest.approx(value.score, abs=1e-4)


def test_identical_texts_have_every_reading_at_100():
    lines = text(sentences(20)[1])
    for name, found in scores(lines, lines).items():
        assert (found.score, found.low, found.high) == (100, 100, 100), name


def test_signatures_say_it_all():
    moses = f"moses-de-sacremoses-{importlib.metadata.version('sacremoses')}"
    end = f"version:{importlib.metadata.version('sacrebleu')}"
    found = scores(["Das Haus."], ["Das Haus."])
    assert list(found) == NAMES
    assert [each.signature for each in found.values()] == [
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{end}",
        f"nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|{end}",
        f"nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|{end}",
        f"nrefs:1|case:mixed|eff:no|tok:{moses}|norm:unicode-punctuation+quotes|at:yes|smooth:none|{end}",
        f"nrefs:1|case:lc|eff:no|tok:{moses}|norm:punctuation-de|at:no|smooth:none|{end}",
        f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{end}",
    ]


def test_a_language_without_rules_has_no_readings_by_moses():
    assert list(scores(["bir ev"], ["bir ev"], target="tr")) == ["sacrebleu", "sacrebleu_lc", "intl", "chrf"]
    assert "tr" not in bleu.languages() and {"de", "en", "fr"} < set(bleu.languages())


def test_a_task_scores_in_its_own_languages(toy):
    found = Translation(toy.task.corpus, "en", "de").score(["a well-known house."], ["a well-known house."])
    assert "tok:moses-de-" in found["paper"].signature and "|at:yes|" in found["paper"].signature
    assert "tok:moses-en-" in toy.task.score(["a"], ["a"])["paper"].signature


# ------------------------------------------------------------------------------ Intervals


def test_an_interval_holds_its_score_and_is_always_the_same(monkeypatch):
    hypotheses, references = map(text, sentences(100))
    found = scores(hypotheses, references)
    for each in found.values():
        assert each.low < each.score < each.high < each.low + 30
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    assert scores(hypotheses, references) == found


def test_an_interval_shrinks_with_more_sentences():
    few, many = (scores(*map(text, sentences(count)))["paper"] for count in (50, 800))
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.parametrize("name", ["sacrebleu", "chrf"])
def test_resamples_are_those_of_sacrebleu(name):
    hypotheses, references = map(text, sentences(40))
    metric = {"sacrebleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}[name]
    statistics = metric._extract_corpus_statistics(hypotheses, [references])
    drawn = sorted(each.score for each in significance._bootstrap_resample(statistics, metric, 1000)[1])
    found = scores(hypotheses, references)[name]
    assert (found.low, found.high) == pytest.approx((drawn[25], drawn[974]), abs=1e-3)


@pytest.mark.parametrize("lines", [["Das Haus steht am Wald."], [""], ["", "Das Haus."]])
def test_any_number_of_lines_has_an_interval(lines):
    reference = ["Das Haus steht am Wald.", "Ein Haus."][: len(lines)]
    for found in scores(lines, reference).values():
        assert 0 <= found.low <= found.score <= found.high <= 100


# ------------------------------------------------------------------------------ t2t bleu


@pytest.fixture
def files(tmp_path):
    """A reference, compressed, and outputs for it."""
    hypotheses, references = map(text, sentences(30))
    (tmp_path / "reference.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in references).encode()))
    (tmp_path / "outputs").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    return tmp_path


def test_bleu_of_two_files(t2t, files):
    hypotheses, references = map(text, sentences(30))
    code, out, err = t2t("bleu", files / "reference.gz", files / "outputs", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found == {name: score._asdict() for name, score in scores(hypotheses, references).items()}
    assert all(set(each) == {"score", "signature", "low", "high"} for each in found.values())
    _, out, _ = t2t("bleu", files / "reference.gz", files / "outputs", "--lang", "en", "--source_lang", "tr")
    assert [line.split()[0] for line in out.splitlines()] == NAMES
    english = scores(hypotheses, references, "en", "tr")["paper"]
    line = f"paper         {english.score:.2f} [{english.low:.2f}, {english.high:.2f}] ({english.signature})"
    assert line in out.splitlines()


MISTAKES = {
    "{tmp}/reference.gz {tmp}/two": "{tmp}/reference.gz has 30 lines, but {tmp}/two has 2: they must match line by",
    "{tmp}/empty {tmp}/empty": "{tmp}/empty and {tmp}/empty are empty",
    "{tmp}/two {tmp}/output": "no file {tmp}/output; did you mean outputs?",
    "{tmp}/two {tmp}/latin": "{tmp}/latin, line 2: not UTF-8",
    "{tmp}/two {tmp}/two --lang dee": "no language 'dee'; did you mean de?",
    "{tmp}/two {tmp}/two --lang xx": "no language 'xx'; allowed: as, bn,",
    "{tmp}/two {tmp}/two --source_lang eng": "no language 'eng'; did you mean en?",
    "{tmp}/two {tmp}/two --land de": "no option '--land'; did you mean --lang or",
    "{tmp}/two": "required: HYP",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items())
def test_mistakes_with_files(t2t, files, words, complaint):
    (files / "two").write_text("a\nb\n")
    (files / "empty").write_text("")
    (files / "latin").write_bytes(b"a\n\xe4\n")
    code, out, err = t2t("bleu", *words.format(tmp=files).split())
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("t2t: ") and complaint.format(tmp=files) in err


# ------------------------------------------------------------------------------ t2t compare


def evaluated(run, outputs, references, step=40, average=2, **changes):
    """An evaluation of the test split, as evaluate.py writes them."""
    texts = {"sources": [f"source {i}" for i in range(len(references))], "references": references}
    summary = {
        "split": "test",
        "scores": {},
        "checkpoints": list(range(step - average + 1, step + 1)),
        "decoding": {"beam": 4, "alpha": 0.6},
    }
    name = f"test-step{step}-average{average}"
    return runs.write_evaluation(run, name, {**texts, "hypotheses": outputs, **changes}, summary)


@pytest.fixture
def two(toy, tmp_path):
    """Two run folders that were never trained."""
    prepared = prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)
    found = [runs.Run(tmp_path / name) for name in ("one", "other")]
    for run in found:
        runs.begin(run, toy, prepared, "cpu", 0)
    return found


def test_compare_two_runs(t2t, two):
    references = text(sentences(80)[1])
    worse, better = text(sentences(80)[0]), text([*sentences(80)[1][:40], *sentences(80)[0][40:]])
    folders = evaluated(two[0], worse, references), evaluated(two[1], better, references)
    code, out, err = t2t("compare", two[0].folder, two[1].folder, "--json")
    found = json.loads(out)
    assert code == 0 and "comparing 80 test pairs" in err
    assert [found["split"], found["first"], found["second"]] == ["test", *map(str, folders)]
    assert list(found["scores"]) == NAMES
    both = scores(worse, references, "en", "en"), scores(better, references, "en", "en")
    for name, each in found["scores"].items():
        assert (each["first"], each["second"]) == pytest.approx([side[name].score for side in both], abs=2e-4)
        assert each["difference"] == pytest.approx(each["second"] - each["first"], abs=2e-4)
        assert each["difference"] > 0 and each["p"] < 0.01
        assert each["signature"] == both[0][name].signature.replace("|case", "|ar:10000|seed:12345|case")
    _, out, _ = t2t("compare", two[0].folder, two[1].folder)
    assert f"first         {folders[0]}, weights: mean of 2 checkpoints up to step 40; beam 4, alpha 0.6" in out
    one = found["scores"]["paper"]
    line = f"paper         {one['second']:.2f} - {one['first']:.2f} = {one['difference']:+.2f}, p {one['p']:.4f} ("
    assert line in out


def test_the_same_outputs_do_not_differ(t2t, two):
    hypotheses, references = map(text, sentences(30))
    for run in two:
        evaluated(run, hypotheses, references)
    found = json.loads(t2t("compare", two[0].folder, two[1].folder, "--json")[1])
    assert {(each["difference"], each["p"]) for each in found["scores"].values()} == {(0, 1)}


def test_two_other_outputs_prove_little():
    hypotheses, references = map(text, sentences(30))
    changed = [*references[:2], *hypotheses[2:]]
    assert sum(a != b for a, b in zip(changed, hypotheses, strict=True)) == 2
    for each in bleu.compare(hypotheses, changed, references, "de", "en").values():
        assert each.difference > 0 and each.p >= 0.5


def test_a_difference_by_chance_is_called_so():
    first, references = sentences(60)
    mixed = [[*a, "Haus"] if i % 2 else a[:-1] for i, a in enumerate(first)]
    other = [a[:-1] if i % 2 else [*a, "Haus"] for i, a in enumerate(first)]
    found = bleu.compare(text(mixed), text(other), text(references), "de", "en")["paper"]
    assert found.p > 0.05


def test_the_newest_evaluation_is_compared(t2t, two):
    hypotheses, references = map(text, sentences(20))
    evaluated(two[0], hypotheses, references, step=40)
    old = evaluated(two[0], hypotheses, references, step=200, average=1)
    new = evaluated(two[0], hypotheses, references, step=200)
    evaluated(two[0], hypotheses, references, step=60)
    os.utime(old / "scores.json", (1, 1))
    evaluated(two[1], hypotheses, references)
    assert [each.folder.name for each in runs.evaluations(two[0], "test")] == [
        "test-step40-average2",
        "test-step60-average2",
        "test-step200-average1",
        "test-step200-average2",
    ]
    assert runs.evaluations(two[0], "dev") == []
    _, out, err = t2t("compare", two[0].folder, two[1].folder)
    assert f"first         {new}" in out
    assert f"{two[0].folder} has 4 evaluations of the test split; the newest is {new.name}" in err


def complaint(t2t, *words):
    code, out, err = t2t("compare", *words)
    assert (code, out) == (2, "") and "Traceback" not in err
    return err.splitlines()[-1]


def test_mistakes_with_runs(t2t, two, tmp_path):
    hypotheses, references = map(text, sentences(10))
    runs_ = [run.folder for run in two]
    made = evaluated(two[0], hypotheses, references)
    assert complaint(t2t, *runs_) == (
        f"t2t: {runs_[1]} has no evaluation of the test split: t2t evaluate {runs_[1]} --split test"
    )
    assert "has no evaluation of the dev split" in complaint(t2t, *runs_, "--split", "dev")
    assert "nowhere is not a run folder" in complaint(t2t, runs_[0], tmp_path / "nowhere")
    other = evaluated(two[1], hypotheses, references[::-1])
    assert f"{made} and {other} are not of the same data: their references differ" in complaint(t2t, *runs_)
    evaluated(two[1], hypotheses, references, sources=["other"] * 10)
    assert "are not of the same data: their sources differ" in complaint(t2t, *runs_)
    evaluated(two[1], hypotheses[:9], references)
    assert f"{other} is damaged: 9 outputs for 10 references" in complaint(t2t, *runs_)
    (other / "references.txt").unlink()
    assert f"no file {other / 'references.txt'}" in complaint(t2t, *runs_)
    (other / "scores.json").write_text("{}")
    assert "scores.json is damaged: it is not the summary of an evaluation" in complaint(t2t, *runs_)
    (other / "scores.json").write_text("{")
    assert "scores.json is damaged" in complaint(t2t, *runs_)


def test_runs_of_other_languages_are_not_compared(t2t, two, toy):
    hypotheses, references = map(text, sentences(10))
    prepared = prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)
    runs.begin(two[1], override(toy, {"task.target": "de"}), prepared, "cpu", 0)
    for run in two:
        evaluated(run, hypotheses, references)
    folders = [run.folder for run in two]
    assert f"{folders[0]} translates en into en, but {folders[1]} en into de" in complaint(t2t, *folders)


def test_runs_of_another_task_are_not_compared(t2t, two, monkeypatch):
    monkeypatch.setattr(runs, "load", lambda _: (two[0], SimpleNamespace(task=object()), None))
    assert "is no run of translating" in complaint(t2t, two[0].folder, two[1].folder)
