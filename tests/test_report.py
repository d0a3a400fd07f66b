"""The paper's tables with our numbers beside them: what stands in a row, what is listed apart, in three forms."""

import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import pytest

from t2t import cost, experiment, storage
from t2t import run as runs
from t2t.constraints import LOST
from t2t.data.prepare import Sizes, prepare
from t2t.experiment import get, override
from t2t.report import tables

SIGNATURES = {"paper": "nrefs:1|tok:moses", "sacrebleu": "nrefs:1|tok:13a", "chrf": "nrefs:1|nc:6"}

# Typed from the page: perplexity, score, millions of parameters.
TABLE3 = """
base 4.92 25.8 65
a_h1 5.29 24.9 -
a_h4 5.00 25.5 -
a_h16 4.91 25.8 -
a_h32 5.01 25.4 -
b_dk16 5.16 25.1 58
b_dk32 5.01 25.4 60
c_n2 6.11 23.7 36
c_n4 5.19 25.3 50
c_n8 4.88 25.5 80
c_d256 5.75 24.5 28
c_d1024 4.66 26.0 168
c_ff1024 5.12 25.4 53
c_ff4096 4.75 26.2 90
d_drop0 5.77 24.6 -
d_drop02 4.95 25.5 -
d_ls0 4.67 25.3 -
d_ls02 5.47 25.7 -
e_learned 4.92 25.7 -
big 4.33 26.4 213
"""
# System, pair, score, FLOPs.
TABLE2 = """
ByteNet|EN-DE|23.75|-
Deep-Att + PosUnk|EN-FR|39.2|1.0e20
GNMT + RL|EN-DE|24.6|2.3e19
GNMT + RL|EN-FR|39.92|1.4e20
ConvS2S|EN-DE|25.16|9.6e18
ConvS2S|EN-FR|40.46|1.5e20
MoE|EN-DE|26.03|2.0e19
MoE|EN-FR|40.56|1.2e20
Deep-Att + PosUnk ensemble|EN-FR|40.4|8.0e20
GNMT + RL ensemble|EN-DE|26.30|1.8e20
GNMT + RL ensemble|EN-FR|41.16|1.1e21
ConvS2S ensemble|EN-DE|26.36|7.7e19
ConvS2S ensemble|EN-FR|41.29|1.2e21
ende_base|EN-DE|27.3|3.3e18
ende_big|EN-DE|28.4|2.3e19
enfr_base|EN-FR|38.1|3.3e18
enfr_big|EN-FR|41.8|2.3e19
"""
# Parser, training, F1.
TABLE4 = """
Vinyals & Kaiser et al. 2014|WSJ only|88.3
Vinyals & Kaiser et al. 2014|semi-supervised|92.1
Petrov et al. 2006|WSJ only|90.4
Zhu et al. 2013|WSJ only|90.4
Zhu et al. 2013|semi-supervised|91.3
Dyer et al. 2016, discriminative|WSJ only|91.7
Huang & Harper 2009|semi-supervised|91.3
McClosky et al. 2006|semi-supervised|92.1
Luong et al. 2015|multi-task|93.0
Dyer et al. 2016, generative|generative|93.3
wsj_only|WSJ only|91.3
wsj_semi|semi-supervised|92.7
"""


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Reports here are of the same few experiments again and again."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((cost, "cost"), (cost, "parameters"), (cost, "abstract_state")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture
def few(monkeypatch):
    """Two rows of Table 3, one of Table 2 and one of Table 4, so that few models are traced."""
    known = {name: get(name) for name in ("table3_base", "table3_c_ff4096", "ende_base", "quickstart", "wsj_only")}
    monkeypatch.setattr(experiment, "registered", lambda: known)


@pytest.fixture(scope="session")
def prepared(toy):
    return prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)


@pytest.fixture
def make(tmp_path, prepared, monkeypatch):
    """Makes run folders that were never trained, in runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)

    def made(folder, tree, steps=(100_000,), split="dev", paper=25.31, decoding=None, scores=None, **more):
        run = runs.Run(tmp_path / "runs" / folder)
        if not run.record.is_file():
            runs.begin(run, tree, prepared, "2 x TestChip (cpu)", 0)
        scores = scores or {"paper": paper, "sacrebleu": paper - 1, "chrf": 50.0}
        summary = {
            "split": split,
            "perplexity": 5.125,
            "scores": {
                name: {
                    "score": score,
                    "signature": SIGNATURES.get(name, "evalb"),
                    "low": score - 0.5,
                    "high": score + 0.5,
                }
                for name, score in scores.items()
            },
            "checkpoints": list(steps),
            "decoding": {**dataclasses.asdict(tree.decoding), **(decoding or {})},
            "constraint": None,
            **more,
        }
        if steps:
            runs.write_evaluation(run, f"{split}-{len(steps)}-{steps[-1]}-{paper}", {}, summary)
        return run

    return made


@pytest.fixture
def rows(t2t, few):
    """Rows of Table 3 by experiment, and what was said."""

    def read(what="table3", *words):
        code, out, err = t2t("report", what, "--json", *words)
        assert code == 0
        return SimpleNamespace(**{row["experiment"] or row["system"]: row for row in json.loads(out)}), err

    return read


# ------------------------------------------------------------------------------ The paper's numbers


def number(word):
    return None if word == "-" else float(word)


def test_table3_is_the_papers(tmp_path):
    found = tables.rows("table3", tmp_path, print)
    expected = [line.split() for line in TABLE3.strip().splitlines()]
    assert [row["experiment"] for row in found] == [f"table3_{name}" for name, *_ in expected]
    for row, (_, *numbers) in zip(found, expected, strict=True):
        assert [row["paper"][name] for name in ("perplexity", "bleu", "parameters")] == list(map(number, numbers))
        assert (row["status"], row["ours"], row["changed"], row["split"]) == ("not run", None, [], "dev")
        if row["paper"]["parameters"]:  # the paper's vocabulary is larger by a few thousand pieces
            assert row["parameters"] / 1e6 == pytest.approx(row["paper"]["parameters"], rel=0.08)


def test_table2_is_the_papers(tmp_path):
    found = tables.rows("table2", tmp_path, print)
    expected = [line.split("|") for line in TABLE2.strip().splitlines()]
    assert [(row["experiment"] or row["system"], row["pair"]) for row in found] == [(a, b) for a, b, *_ in expected]
    for row, (*_, score, flops) in zip(found, expected, strict=True):
        assert (row["paper"]["bleu"], row["paper"]["train_flops"]) == (number(score), number(flops))
        assert row["status"] == ("not run" if row["experiment"] else "the paper's") and row["ours"] is None
        assert bool(row["train_flops"]) == bool(row["parameters"]) == bool(row["experiment"])
    assert all(len(line) <= 140 for line in tables.text(found).splitlines())


def test_table4_is_the_papers(tmp_path):
    found = tables.rows("table4", tmp_path, print)
    expected = [line.split("|") for line in TABLE4.strip().splitlines()]
    names = [(row["experiment"] or row["system"], row["training"]) for row in found]
    assert names == [(name, training) for name, training, _ in expected]
    for row, (*_, f1) in zip(found, expected, strict=True):
        assert (row["paper"]["f1"], row["split"], row["ours"]) == (number(f1), "test", None)
        assert row["status"] == ("not run" if row["experiment"] else "the paper's")


# ------------------------------------------------------------------------------ What stands in a row


@pytest.mark.parametrize("constraint", [{"max_openings": 10, "lost": LOST}, None])
def test_a_parser_stands_in_table4_if_it_was_constrained(rows, t2t, make, constraint):
    scores = {"f1": 80.5, "recall": 80.25, "precision": 80.75}
    tree = override(get("wsj_only"), {"task.treebank.folder": "elsewhere"})
    make("parser", tree, split="test", scores=scores, constraint=constraint)
    row = rows("table4")[0].wsj_only
    if constraint:
        assert (row["ours"]["scores"]["f1"]["score"], row["ours"]["changed"], row["changed"]) == (80.5, {}, [])
        assert re.search(
            r"^wsj_only +WSJ only +5.12 +91.3 +80.50 \[1\] +80.25", t2t("report", "table4")[1], re.MULTILINE
        )
    else:
        changed = {"constraint": {"registered": {"max_openings": 10, "lost": LOST}, "run": None}}
        assert row["ours"] is None and [each["changed"] for each in row["changed"]] == [changed]


def test_a_run_stands_for_its_row(rows, make):
    run = make("mine", get("table3_base"))
    speeds = [{"step": i, "split": "train", "tokens_per_second": x} for i, x in enumerate((1.0, 700.0, 900.0))]
    lines = [*speeds, {"step": 3, "split": "dev", "perplexity": 5.0}]
    storage.write(run.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    found, err = rows()
    ours = found.table3_base["ours"]
    assert (found.table3_base["status"], found.table3_c_ff4096["status"], err) == ("run", "not run", "")
    assert ours["run"] == "runs/mine" and ours["commit"] == runs.commit() and ours["device"] == "2 x TestChip (cpu)"
    assert (ours["perplexity"], ours["steps"], ours["averaged"], ours["tokens_per_second"]) == (5.125, 100_000, 1, 700)
    assert ours["parameters"] == found.table3_base["parameters"] == 63_045_632
    assert ours["scores"]["paper"] == {"score": 25.31, "signature": SIGNATURES["paper"], "low": 24.81, "high": 25.81}
    assert (ours["changed"], found.table3_base["changed"]) == ({}, [])


def test_the_split_of_the_table_counts(rows, make):
    make("dev", get("ende_base"), split="dev")
    make("unchanged", get("table3_base"), split="test")
    make("wider", override(get("table3_c_ff4096"), {"model.d_ff": 8192}), split="test")
    found, err = rows()
    assert (found.table3_base["status"], found.table3_c_ff4096["status"]) == ("not evaluated", "not run")
    assert "has no evaluation of the dev split: t2t evaluate runs/unchanged --split dev" in err
    assert rows("table2")[0].ende_base["status"] == "not evaluated"


def test_flops_are_of_the_steps_made(rows, make):
    make("part", get("ende_base"), split="test", steps=(1_000,))
    row = rows("table2")[0].ende_base
    assert row["ours"]["train_flops"] * 100 == pytest.approx(row["train_flops"])
    assert row["train_flops"] == pytest.approx(9.57e17, rel=1e-2)


def test_where_a_run_was_made_changes_nothing(rows, make):
    places = {"task.corpus.data_dir": "/data", "task.corpus.mirror": "/mirror", "mesh.fsdp": 2, "model.unroll": 6}
    places["model.attention"] = "fused"
    make("elsewhere", override(get("table3_base"), {**places, "log_every": 7, "decoding.rows": 3}))
    assert rows()[0].table3_base["ours"]["run"] == "runs/elsewhere"


@pytest.mark.parametrize(
    ("change", "decoding", "named"),
    [
        ({"model.d_ff": 4096}, {}, {"model.d_ff": {"registered": 2048, "run": 4096}}),
        ({"task.vocabulary": "my.model"}, {}, {"task.vocabulary": {"registered": "", "run": "my.model"}}),
        ({}, {"beam": 1}, {"decoding.beam": {"registered": 4, "run": 1}}),
    ],
)
def test_a_changed_run_is_listed_apart(rows, t2t, make, change, decoding, named):
    make("changed", override(get("table3_base"), change), decoding=decoding)
    row = rows()[0].table3_base
    assert (row["status"], row["ours"], [each["changed"] for each in row["changed"]]) == ("not run", None, [named])
    ((path, pair),) = named.items()
    out = t2t("report", "table3")[1]
    how = f"changed: {path} {pair['run']} (not {pair['registered']})"
    words = f"table3_base: runs/changed, {how}; PPL 5.12, paper 25.31 [1], sacrebleu 24.31 [2], "
    assert words in out and re.search(r"^table3_base +4.92 +25.8 +not run ", out, re.MULTILINE)
    assert "- " + words in t2t("report", "table3", "--markdown")[1]


def test_an_evaluation_of_other_text_is_listed_apart(rows, make):
    base = get("table3_base")
    other = {"task.corpus.dev": "my.tsv", "task.corpus.data_dir": "/elsewhere"}
    make("run", base, paper=25.0, task=experiment.to_json(override(base, {"task.corpus.data_dir": "/x"}).task))
    make("run", base, paper=99.0, task=experiment.to_json(override(base, other).task))
    found = rows()[0].table3_base
    assert found["ours"]["scores"]["paper"]["score"] == 25.0
    make("other", base, paper=99.0, task=experiment.to_json(override(base, other).task))
    (changed,) = rows()[0].table3_base["changed"]
    assert changed["changed"] == {"task.corpus.dev": {"registered": "validation", "run": "my.tsv"}}


def test_an_evaluation_in_another_precision_is_listed_apart(rows, make):
    make("same", get("table3_base"), dtype="bfloat16")
    make("other", get("table3_base"), dtype="float32")
    row = rows()[0].table3_base
    assert row["ours"]["run"] == "runs/same"
    assert [each["changed"] for each in row["changed"]] == [
        {"model.dtype": {"registered": "bfloat16", "run": "float32"}}
    ]


def test_of_several_runs_the_longest_stands(rows, make):
    for folder, step in (("a", 300), ("b", 5_000), ("c", 40)):
        make(folder, get("table3_base"), steps=(step,))
    make("d", override(get("table3_base"), {"seed": 3}))
    found, err = rows()
    assert found.table3_base["ours"]["run"] == "runs/b"
    assert [each["run"] for each in found.table3_base["changed"]] == ["runs/d"]
    assert re.findall(r"runs/(\w) is not shown, evaluated at (\d+) steps", err) == [("c", "40"), ("a", "300")]


def test_of_several_evaluations_the_one_as_registered_stands(rows, make):
    tree = get("table3_base")
    make("run", tree, steps=(900,), paper=1.0)
    make("run", tree, steps=(1_000,), paper=2.0)
    make("run", tree, steps=(800, 900, 1_000), paper=3.0)
    make("run", tree, steps=(2_000,), paper=4.0, decoding={"alpha": 1.0})
    ours = rows()[0].table3_base["ours"]
    assert (ours["scores"]["paper"]["score"], ours["steps"], ours["averaged"]) == (2.0, 1_000, 1)


# ------------------------------------------------------------------------------ Folders that cannot be read


def damage(run, kind):
    (scores,) = run.folder.glob("evaluations/*/scores.json")
    record, summary = json.loads(run.record.read_text()), json.loads(scores.read_text())
    if kind == "record":
        run.record.write_text("{")
    elif kind == "experiment":
        run.record.write_text(json.dumps({**record, "experiment": {"class": "t2t.nothing.Known"}}))
    elif kind == "parts":
        run.record.write_text(json.dumps({**record, "parts": []}))
    elif kind == "vocabulary":
        (run.vocabulary / "shared.model").unlink()
    elif kind == "scores":
        scores.write_text("[]")
    elif kind == "perplexity":
        scores.write_text(json.dumps({**summary, "perplexity": None}))
    elif kind == "checkpoints":
        scores.write_text(json.dumps({**summary, "checkpoints": []}))
    elif kind == "metrics":
        storage.write(run.metrics, "{\n")


KINDS = ["record", "experiment", "parts", "vocabulary", "scores", "perplexity", "checkpoints", "metrics"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_named_and_left_out(rows, make, kind):
    damage(make("broken", get("table3_base"), steps=(200_000,)), kind)
    make("whole", get("table3_base"))
    found, err = rows()
    assert found.table3_base["ours"]["run"] == "runs/whole"
    assert err.startswith("runs/broken is left out: ") and err.count("\n") == 1


def test_other_things_in_the_folder(rows, make, tmp_path):
    make("other", get("quickstart"))
    (tmp_path / "runs" / "notes.txt").write_text("")
    (tmp_path / "runs" / f"x.1{storage.UNFINISHED}").mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    found, err = rows()
    assert found.table3_base["status"] == "not run"
    assert err == "runs/empty is left out: runs/empty is not a run folder: no experiment.json in it\n"


def test_where_the_runs_lie(rows, t2t, make, tmp_path, monkeypatch):
    make("run", get("table3_base"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert rows()[0].table3_base["status"] == "not run"
    assert rows("table3", "--runs", "../runs")[0].table3_base["ours"]["run"] == "../runs/run"
    assert t2t("report", "table3", "--runs", "nowhere") == (2, "", "t2t: no folder nowhere\n")


def test_an_evaluation_of_before_lacks_a_score(t2t, few, make):
    run = make("old", get("table3_base"))
    (scores,) = run.folder.glob("evaluations/*/scores.json")
    summary = json.loads(scores.read_text())
    del summary["scores"]["paper"]
    scores.write_text(json.dumps(summary))
    assert re.search(r"^table3_base +4\.92 +5\.12 +25\.8 +- +24\.31 \[1\] ", t2t("report", "table3")[1], re.MULTILINE)


# ------------------------------------------------------------------------------ Forms


def test_text(t2t, few, make):
    make("mine", get("table3_base"), steps=(500, 1_000))
    make("other", get("table3_c_ff4096"))
    code, out, err = t2t("report", "table3")
    assert (code, err) == (0, "")
    assert out.startswith("Table 3, dev split: ")
    assert re.search(
        r"^table3_base +4\.92 +5\.12 +25\.8 +25\.31 \[1\] +24\.31 \[2\] +65 +63\.0 +1,000 of 100,000 +2 of 1$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^table3_c_ff4096 .* 100,000 +1$", out, re.MULTILINE)
    assert f"\n[1] paper: {SIGNATURES['paper']}\n[2] sacrebleu: {SIGNATURES['sacrebleu']}\n" in out
    assert "[3]" not in out
    made = f"commit {runs.commit()[:12]}{'+' * runs.commit().endswith('+')}, 2 x TestChip (cpu)"
    assert f"\ntable3_base: runs/mine, {made}\n" in out
    assert all(len(line) <= 140 for line in out.splitlines())


def test_another_signature_is_another_footnote(t2t, few, make, monkeypatch):
    make("mine", get("table3_base"))
    monkeypatch.setitem(SIGNATURES, "paper", "nrefs:1|tok:other")
    make("other", get("table3_c_ff4096"))
    out = t2t("report", "table3")[1]
    assert "[2] paper: nrefs:1|tok:other\n[3] sacrebleu" in out
    assert [re.findall(r"\[\d\]", line) for line in out.splitlines() if line.startswith("table3_") and "[" in line] == [
        ["[1]", "[3]"],
        ["[2]", "[3]"],
    ]


def test_markdown(t2t, few, make):
    make("mine", get("ende_base"), split="test", steps=(96_000, 97_500, 99_000, 99_500, 100_000))
    code, out, _ = t2t("report", "table2", "--markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert code == 0 and {line.count("|") for line in lines} == {13} and len(lines) == 2 + 13 + 1
    assert lines[0].startswith("| experiment | pair | ours: PPL | paper's BLEU | ours: paper | ours: sacrebleu |")
    assert lines[-1] == (
        "| ende_base | EN-DE | 5.12 | 27.3 | 25.31 [1] | 24.31 [2] | 65 | 63.0 | 3.3e18 | 9.6e17 | 100,000 | 5 |"
    )
    assert f"- [1] paper: {SIGNATURES['paper']}" in out


@pytest.mark.parametrize("form", [[], ["--markdown"]])
@pytest.mark.parametrize("table", ["table2", "table3"])
def test_no_number_of_ours_bears_a_bare_name(t2t, few, make, table, form):
    make("mine", get("table3_base"))
    make("changed", override(get("ende_base"), {"model.d_ff": 96}), split="test")
    out = t2t("report", table, *form)[1]
    lines = out.splitlines()
    assert len(re.findall(r"\bbleu\b", out, re.IGNORECASE)) == 1
    heads = next(i for i, line in enumerate(lines) if "BLEU" in line)
    if form:
        assert "| paper's BLEU |" in lines[heads]
    else:  # heads are of two lines
        assert lines[heads - 1][: lines[heads].index("BLEU") + 4].endswith("paper's")


@pytest.mark.parametrize(
    ("words", "complaint"),
    {
        "tabel3": "no report 'tabel3'; did you mean table3 or table4 or table2?",
        "xyz": "no report 'xyz'; allowed: baselines, table2, table3, table4",
        "table3 --markdown --json": "--markdown and --json are two forms of one report: give one of them",
        "table3 --run x": "no option '--run'; did you mean --runs or --out or --json?",
    }.items(),
)
def test_mistakes(t2t, words, complaint):
    assert t2t("report", *words.split()) == (2, "", f"t2t: {complaint}\n")
