"""`t2t report baselines`: who stands beside whom, and with which numbers. Runs here were never trained."""

import dataclasses
import json

import pytest

from t2t import cost, experiment, storage
from t2t import run as runs
from t2t.data.prepare import Sizes, prepare
from t2t.experiment import get, override
from t2t.report import baselines

SIGNATURES = {"paper": "nrefs:1|tok:moses", "sacrebleu": "nrefs:1|tok:13a"}


@pytest.fixture
def known(toy, monkeypatch):
    """The toy, a variant of it, a row of Table 3 with its base, and what has no variants."""
    variant = dataclasses.replace(override(toy, {"model.d_ff": 48}), name="narrow", base="reversal")
    names = ("table3_base", "table3_c_ff4096", "craft")
    found = {"narrow": variant, "reversal": toy, **{name: get(name) for name in names}}
    monkeypatch.setattr(experiment, "registered", lambda: found)
    return found


@pytest.fixture
def make(tmp_path, toy):
    """Makes run folders in `tmp_path`."""
    prepared = prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)

    def made(folder, tree, bleu, steps=12, split="test"):
        run = runs.Run(tmp_path / folder)
        runs.begin(run, tree, prepared, "1 x TestChip (cpu)", 0)
        timing = [{"step": i, "split": "train", "tokens_per_second": 100.0 * i, "seconds": 30.0} for i in (1, 2, 3)]
        storage.write(run.metrics, "".join(json.dumps(line) + "\n" for line in timing))
        numbers = {"low": bleu - 1, "high": bleu + 1}
        scores = {name: {"score": bleu, "signature": how, **numbers} for name, how in SIGNATURES.items()}
        summary = {"split": split, "perplexity": 3.5, "scores": scores, "checkpoints": [steps - 1, steps]}
        runs.write_evaluation(run, split, {}, {**summary, "decoding": dataclasses.asdict(tree.decoding)})

    return made


def test_variants_stand_beside_their_base(known, tmp_path):
    found = baselines.rows(tmp_path, print)
    assert [(row["experiment"], row["beside"], row["status"]) for row in found] == [
        ("reversal", "reversal", "not run"),
        ("narrow", "reversal", "not run"),
    ]
    assert {row["model"] for row in found} == {"Transformer"}
    assert found[0]["parameters"] - found[1]["parameters"] == 4 * 16 * (2 * 32 + 1)  # rows and columns of d_ff


def test_a_row_is_what_its_run_reached(known, make, tmp_path):
    make("mine", known["narrow"], 20.25, steps=6)
    make("other", override(known["reversal"], {"model.d_ff": 40}), 19.0)
    first, second = baselines.rows(tmp_path, print)
    assert first["ours"] is None and [each["changed"] for each in first["changed"]] == [
        {"model.d_ff": {"registered": 64, "run": 40}}
    ]
    ours = second["ours"]
    assert (ours["perplexity"], ours["steps"], ours["tokens_per_second"], ours["seconds"]) == (3.5, 6, 200, 90)
    assert ours["train_flops"] == 6 * cost.cost(known["narrow"], None)["flops_per_step"]
    assert ours["scores"]["paper"]["score"] == 20.25


def test_three_forms(known, make, t2t, tmp_path):
    make("mine", known["narrow"], 20.25)
    words = ("report", "baselines", "--runs", tmp_path)
    code, out, _ = t2t(*words)
    assert code == 0 and "Beside reversal, test split" in out
    (line,) = [line for line in out.splitlines() if line.startswith("narrow ")]
    assert line.split()[1:8] == ["Transformer", "0.04", "3.50", "20.25", "[1]", "20.25", "[2]"]
    assert line.split()[-3:] == ["200", "1.5", "12"]  # tokens/s, minutes, steps
    assert f"[1] paper: {SIGNATURES['paper']}" in out and "TestChip" in out and "not run" in out
    code, out, _ = t2t(*words, "--markdown")
    assert code == 0 and "| narrow | Transformer | 0.04 | 3.50 | 20.25 [1] | 20.25 [2] |" in out
    code, out, _ = t2t(*words, "--json")
    assert code == 0 and json.loads(out) == baselines.rows(tmp_path, print)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("baselines --runs nowhere", "no folder nowhere"),
        ("baselines --markdown --json", "two forms of one report"),
        ("baseline", "did you mean baselines?"),
    ],
)
def test_mistakes(known, t2t, words, complaint):
    code, out, said = t2t("report", *words.split())
    assert (code, out) == (2, "") and complaint in said and said.count("\n") == 1
