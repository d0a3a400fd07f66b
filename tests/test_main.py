"""The command line as a user meets it: verbs on a small run, and each complaint in one line with exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from t2t import evaluate, experiment, train, translate
from t2t.batch import EOS
from t2t.data.vocabulary import Vocabularies
from t2t.experiment import override


@pytest.fixture(autouse=True)
def registered(toy, monkeypatch):
    known = {**experiment.registered(), "reversal": toy}
    monkeypatch.setattr(experiment, "registered", lambda: known)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reversal"
    train.train(
        override(toy, {"train_steps": 60, "checkpoint_every": 20, "average": 3}),
        folder,
        lambda _: None,
        lambda *_: None,
    )
    return str(folder)


# ------------------------------------------------------------------------------ Verbs


def test_list(t2t):
    assert "quickstart" in t2t("list")[1]
    found = {each.pop("name"): each for each in json.loads(t2t("list", "--json")[1])}
    paper = {"perplexity": None, "bleu": None, "parameters": None, "train_flops": None, "hours": None, "f1": None}
    reports = experiment.get("quickstart").reports
    assert found["quickstart"] == {"reports": reports, "table": None, "paper": paper}
    assert found["table3_base"]["paper"] == {**paper, "perplexity": 4.92, "bleu": 25.8, "parameters": 65, "hours": 12}


def test_show_and_diff(t2t):
    assert "model.d_ff                 96 " in t2t("show", "reversal", "--model.d_ff", "96")[1]
    tree = json.loads(t2t("show", "reversal", "--model.d_ff=96", "--json")[1])
    assert experiment.from_json(tree).model.d_ff == 96
    assert "model.d_model: 32 -> " in t2t("diff", "reversal", "quickstart")[1]
    assert t2t("diff", "reversal", "reversal", "--model.d_ff", "96")[1] == "model.d_ff: 64 -> 96\n"


def test_cost(t2t):
    code, out, _ = t2t("cost", "reversal", "--train_steps", "1000")
    table = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    assert code == 0 and table["FLOPs of training"].endswith("1,000 steps")
    assert "the paper gives no time for it" in table["as the paper counts"] and "give --rate" in table["hours"]
    words = ["cost", "reversal", "--mesh.data", "2", "--rate", "0.5"]
    found = json.loads(t2t(*words, "--json")[1])
    assert found["hours"] == pytest.approx(found["train_flops"] / (0.5e12 * 2) / 3600)
    code, out, err = t2t(*words, "--compile")
    assert code == 0 and "compiling" in err
    assert "XLA: memory per device" in out and "at 0.5 TFLOP/s x 2 device(s)" in out


def test_prepare(t2t):
    code, out, _ = t2t("prepare", "reversal", "--json")
    report = json.loads(out)
    assert code == 0 and report["pairs"] == 1200 == report["kept"] + report["dropped"]["duplicate"]
    assert report["overlap"]["dev"]["pairs"] == 64
    code, out, _ = t2t("prepare", "reversal")
    assert code == 0 and f"1,200 read, {report['kept']:,} kept" in out


@pytest.mark.parametrize("words", [["train", "reversal", "--help"], ["train", "-h"], ["show", "--help"]])
def test_help_shows_every_knob_with_its_comment(t2t, capsys, words):
    with pytest.raises(SystemExit) as end:
        t2t(*words)
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "--model.d_ff" in out and "inner width of the feed-forward layer" in out
    assert "a whole number, at least 1" in out


def knobs_in_help(t2t, capsys, *words):
    """What help says of knobs: whose they are, and the value of each."""
    with pytest.raises(SystemExit):
        t2t(*words, "--help")
    title, *lines = capsys.readouterr().out.partition("knobs")[2].splitlines()
    return title, dict(line.removeprefix("  --").split(" ", 1) for line in lines if line.startswith("  --"))


def test_help_of_a_run_shows_what_can_still_change(t2t, capsys, run):
    title, knobs = knobs_in_help(t2t, capsys, "evaluate")
    assert "`t2t evaluate RUN --help` has those of a run" in title
    assert {"decoding.alpha", "decoding.beam"} < knobs.keys() and "model.d_ff" not in knobs
    assert knobs["mesh.data"] == "1"  # whatever it was trained on
    title, knobs = knobs_in_help(t2t, capsys, "evaluate", "--split", "dev", run)
    kept = json.loads((Path(run) / "experiment.json").read_text())["experiment"]
    assert title == f" of {run}:" and knobs["task.corpus.test"] == kept["task"]["corpus"]["test"]
    assert knobs["decoding.rows"] == str(kept["decoding"]["rows"])


@pytest.mark.parametrize(
    ("words", "refused"),
    [("sample", "decoding.beam"), ("sample", "decoding.early_stopping"), ("score a b c", "decoding.rows")],
)
def test_help_leaves_out_what_a_verb_refuses(t2t, capsys, run, words, refused):
    words = words.replace("a", run, 1).split() if " " in words else [words]
    knobs = knobs_in_help(t2t, capsys, *words)[1]
    assert refused not in knobs and "model.dtype" in knobs
    words = [*words, run] if len(words) == 1 else words
    assert t2t(*words, f"--{refused}", "1")[0] == 2


def test_train_evaluate_and_again(t2t, tmp_path):
    words = ["train", "reversal", "--run", tmp_path / "run", "--train_steps", "5"]
    code, out, err = t2t(*words)
    assert code == 0
    assert "sacrebleu" in out and "tok:13a" in out and "reference" in out and "try next" in out
    assert "paper " in out and "tokenised_lc " in out and not re.search(r"\bbleu\b", out, re.IGNORECASE)
    assert err.splitlines()[0].startswith("reversal: 5 steps in") and "compiled" in err.splitlines()[0]
    assert "trained for 5 steps already" in t2t(*words)[2]
    code, out, _ = t2t(*words, "--final_evaluation", "none", "--train_steps", "6")
    assert (code, out) == (0, "")


def trained_with(run, folder, **changes):
    """A copy of a run whose model was another in fields that are no weights."""
    shutil.copytree(run, folder)
    kept = json.loads((folder / "experiment.json").read_text())
    kept["experiment"]["model"] |= changes
    (folder / "experiment.json").write_text(json.dumps(kept))
    return folder


def test_a_run_of_a_gpu_s_kernel_is_read_where_there_is_none(t2t, run, tmp_path):
    fused = trained_with(run, tmp_path / "fused", attention="fused")
    assert t2t("report", fused)[0] == 0 and "reversal" in (fused / "report.html").read_text()
    assert t2t("average", fused, "--to", tmp_path / "averaged", "--average", "3")[0] == 0
    words = ["--split", "dev", "--beam", "1", "--json"]
    assert t2t("evaluate", fused, *words)[2].endswith("this is cpu; blocked computes the same on any device\n")
    found, plain = (t2t("evaluate", *each, *words)[1] for each in ([fused, "--model.attention", "dense"], [run]))
    assert json.loads(found)["scores"] == json.loads(plain)["scores"]


def test_a_run_that_dropped_attention_weights_is_read_by_another_kernel(t2t, run, tmp_path):
    dropped = trained_with(run, tmp_path / "dropped", p_attention=0.1)
    words = ["--split", "dev", "--beam", "1", "--json"]
    found, plain = (t2t("evaluate", *each, *words)[1] for each in ([dropped, "--model.attention", "blocked"], [run]))
    assert json.loads(found)["perplexity"] == pytest.approx(json.loads(plain)["perplexity"], rel=1e-4)


def test_evaluate_in_another_precision(t2t, run):
    words = ["evaluate", run, "--split", "dev", "--beam", "1", "--json", "--model.dtype"]
    found = {dtype: json.loads(t2t(*words, dtype)[1]) for dtype in ("float32", "bfloat16")}
    assert all(each["dtype"] == dtype for dtype, each in found.items())
    single, half = found.values()
    assert single["folder"] != half["folder"] and single["perplexity"] != half["perplexity"]
    assert abs(single["perplexity"] / half["perplexity"] - 1) < 0.05


def test_evaluate(t2t, run):
    code, out, _ = t2t("evaluate", run, "--split", "dev", "--average", "2", "--beam", "2", "--json")
    found = json.loads(out)
    assert code == 0 and found["split"] == "dev" and found["checkpoints"] == [40, 60]
    assert found["decoding"]["beam"] == 2
    assert set(found["scores"]) == {"sacrebleu", "sacrebleu_lc", "intl", "paper", "tokenised_lc", "chrf"}
    assert all(set(each) == {"score", "signature", "low", "high"} for each in found["scores"].values())
    out = t2t("evaluate", run)[1]
    assert "perplexity" in out and re.search(
        r"^paper +\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] \(nrefs:1\|", out, re.MULTILINE
    )


def test_translate_answers_each_line_in_order(t2t, run):
    lines = [b"ten cat sun", b"", b"old", b"   ", b"sea map ice red", b"ten cat sun"]
    code, out, _ = t2t("translate", run, stdin=b"\n".join(lines))
    answers = out.split("\n")
    assert code == 0 and len(answers) == 7 and answers[6] == ""
    assert answers[1] == answers[3] == "" and answers[0] == answers[5] != ""
    alone = [t2t("translate", run, stdin=line)[1] for line in lines]
    assert "".join(alone[:1] + alone[2:3] + alone[4:]) == "".join(f"{a}\n" for a in answers[:6] if a)


def test_translate_n_best_with_scores(t2t, run):
    _, out, _ = t2t("translate", run, "--n_best", "3", "--scores", "--beam", "4", stdin=b"ten cat sun\n\nold\n")
    lines = out.split("\n")[:-1]
    assert len(lines) == 9 and lines[3:6] == ["", "", ""]
    scores = [float(line.split("\t")[0]) for line in lines[:3]]
    assert scores == sorted(scores, reverse=True)
    assert lines[0].split("\t")[1] == t2t("translate", run, "--beam", "4", stdin=b"ten cat sun")[1].strip()


def test_translate_names_bad_lines_and_goes_on(t2t, run):
    code, out, err = t2t("translate", run, stdin=b"ten cat\n\xff\xfe\nsun red\n")
    assert code == 2 and out.count("\n") == 3 and out.split("\n")[1] == ""
    assert "line 2: not UTF-8" in err


@pytest.mark.parametrize(("how", "said"), [("split", "translated in 5 pieces"), ("cut", "cut after 6")])
def test_translate_says_what_it_does_to_long_lines(t2t, run, how, said):
    words = ["translate", run, "--too_long", how, "--decoding.max_input", "6"]
    code, out, err = t2t(
        *words, stdin=b"old\nten cat sun red old sea map ice ten cat sun red old sea map ice old red\nold\n"
    )
    assert code == 0 and out.count("\n") == 3
    assert "line 2: 22 tokens, " + said in err
    assert out.split("\n")[0] == out.split("\n")[2]


def test_translate_by_sampling(t2t, run):
    draw = lambda *how: t2t("translate", run, "--sample", *how, stdin=b"ten cat sun\n" * 8)[1]  # noqa: E731
    assert draw() == draw() != draw("--seed", "1")
    assert len(set(draw("--top_k", "1").splitlines())) == 1


def test_score(t2t, run, tmp_path):
    (tmp_path / "source").write_text("ten cat sun\nold sea\n")
    (tmp_path / "target").write_text("sun cat ten\nten ten ten\n")
    code, out, _ = t2t("score", run, tmp_path / "source", tmp_path / "target")
    values = [float(line) for line in out.splitlines()]
    assert code == 0 and len(values) == 2 and values[1] < values[0] < 0
    rows = json.loads(t2t("score", run, tmp_path / "source", tmp_path / "target", "--json")[1])
    assert rows[0]["target"] == "sun cat ten"
    assert abs(rows[0]["log_probability"] - values[0]) < 1e-5
    code, out, said = t2t("score", run, tmp_path / "source", tmp_path / "target", "--model.dtype", "bfloat16")
    assert code == 0 and float(out.split()[0]) == pytest.approx(values[0], rel=0.1), said


def test_a_line_that_begins_with_its_target_language_says_it_for_each_of_its_parts(toy, monkeypatch):
    """As a Marian model of several languages is told: by one piece."""
    pieces = [">>de<<", *(f"▁w{i}" for i in range(9)), "</s>"]
    side = SimpleNamespace(encode=lambda texts: [[*range(10, 20), EOS]], pieces=lambda ids: pieces)
    tree = override(toy, {"decoding.max_input": 5})
    work = translate.TranslateLines(tree, Vocabularies(side, side), translate.TranslationConfig(), lambda _: None)
    (line,) = work.lines([">>de<< w0"], 1)
    assert line.pieces == [[10, 11, 12, 13, EOS], [10, 14, 15, 16, EOS], [10, 17, 18, 19, EOS]]
    pieces[0] = "▁w"
    (line,) = work.lines(["w w0"], 1)
    assert line.pieces == [[10, 11, 12, 13, EOS], [14, 15, 16, 17, EOS], [18, 19, EOS]]


def test_average_makes_a_run(t2t, run, tmp_path):
    code, out, _ = t2t("average", run, "--average", "3", "--to", tmp_path / "mean")
    assert code == 0 and out.strip() == str(tmp_path / "mean")
    direct = t2t("translate", run, "--average", "3", "--scores", stdin=b"ten cat sun\n")[1]
    assert t2t("translate", tmp_path / "mean", "--scores", stdin=b"ten cat sun\n")[1] == direct
    found = json.loads(t2t("evaluate", tmp_path / "mean", "--json")[1])
    assert found["checkpoints"] == [20, 40, 60]
    assert "exists" in t2t("average", run, "--average", "3", "--to", tmp_path / "mean")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_experiments_and_knobs(t2t, shell):
    _, out, _ = t2t("completion", shell)
    assert "quickstart" in out and "--model.d_ff" in out and "translate" in out


# ------------------------------------------------------------------------------ Complaints


def test_without_memory_it_says_what_needs_less(t2t, run, monkeypatch):
    """What XLA says when a sentence is too long for any memory, and NumPy."""
    for much in (lambda: jax.numpy.zeros(2**50).block_until_ready(), lambda: np.zeros(2**60, np.int8)):
        monkeypatch.setattr(evaluate, "score_pairs", lambda *_, much=much: much())
        code, _, said = t2t("score", run, __file__, __file__)
        assert code == 2 and said.startswith("t2t: out of memory (") and said.count("\n") == 1
    monkeypatch.setattr(evaluate, "score_pairs", lambda *_: jax.numpy.zeros(2) + jax.numpy.zeros(3))
    with pytest.raises(TypeError):
        t2t("score", run, __file__, __file__)


MISTAKES = {
    "trian quickstart": "no verb 'trian'; did you mean train or",
    "train quikstart": "no experiment 'quikstart'; did you mean quickstart or lm_quickstart or parse_quickstart?",
    "train": "required: NAME",
    "show quickstart --model.d_fff 5": "no knob '--model.d_fff'; did you mean --model.d_ff",
    "show quickstart --d_ff 5": "no knob '--d_ff'; did you mean --model.d_ff",
    "show quickstart --model.d_ff wide": "--model.d_ff is a whole number, at least 1, not 'wide'",
    "show quickstart --model.d_model -4": "--model.d_model is a whole number, at least 1, not -4",
    "show quickstart --model.p_drop 1.5": "--model.p_drop is a number, at least 0 and below 1, not 1.5",
    "show quickstart --model.positions sinusoids": "no --model.positions 'sinusoids'; did you mean sinusoid?",
    "show quickstart --model.d_model 33": "--model.d_model must be even for sinusoids, not 33",
    "show quickstart --model 33": "--model has parts, such as --model.vocab_size",
    "show quickstart --model.d_ff": "--model.d_ff needs a value",
    "list --jsn": "no option '--jsn'; did you mean --json?",
    "list surplus": "unrecognized arguments: surplus",
    "prepare reversal --model.vocab_size 100000": "--model.vocab_size 100000 is more than the corpus supports: at most",
    "prepare reversal --task.vocabulary {tmp}/no.model": "no vocabulary file {tmp}/no.model",
    "prepare reversal --task.corpus.train {tmp}/trian.tsv": "no file {tmp}/trian.tsv; did you mean train.tsv",
    "prepare reversal --task.corpus.train {tmp}/empty.tsv": "{tmp}/empty.tsv is empty",
    "evaluate {run} --split dev --task.corpus.dev {tmp}/latin.tsv": "{tmp}/latin.tsv, line 2: not UTF-8",
    "prepare reversal --model.target_vocab_size 20": "--model.target_vocab_size must be 0, not 20: both sides share",
    "parse {run}": "this run does not parse: its outputs are text, by `t2t translate`",
    "train reversal --run {tmp}": "{tmp} is not empty and not a run folder",
    "train reversal --run {run} --model.d_ff 96": "{run} holds another experiment: model.d_ff is 64 there, 96 here",
    "train reversal --run {tmp}/empty.tsv/run": "cannot write",
    "train reversal --mesh.data 64": "--mesh.data 64 x --mesh.fsdp 1 x --mesh.model 1 needs 64 devices; there are 8",
    "evaluate {tmp}/nowhere": "{tmp}/nowhere is not a run folder",
    "evaluate {run} --split tset": "invalid choice: 'tset'",
    "evaluate {run} --average 9": "has 3 checkpoint(s), too few to average 9",
    "train quickstart --run s3://bucket/run": "s3://bucket/run: a run folder is a path or an address of Google's",
    "evaluate gs://": "gs://: a run folder is a path or an address of Google's, gs://BUCKET/FOLDER",
    "train reversal --run {tmp}/new --model.attention fused": "--model.attention fused is a kernel of GPUs (cuDNN) and",
    "evaluate {run} --model.attention fused": "and this is cpu; blocked computes the same on any device",
    "evaluate {run} --model.attention_span 3": "--model.attention_span cannot change in a trained run",
    "evaluate {run} --model.d_ff 96": "--model.d_ff cannot change in a trained run",
    "translate {run} --beam 0": "--decoding.beam is a whole number, at least 1, not 0",
    "translate {run} --n_best 9": "--n_best 9 needs a beam as wide; --beam is 4",
    "translate {run} --top_k 3": "--top_k goes with --sample",
    "translate {run} --sample --n_best 3": "--n_best 3 does not go with --sample",
    "translate {run} --sample --beam 3": "--beam is of the search for the best output; with --sample",
    "translate {run} --sample --decoding.alpha 0": "--decoding.alpha is of the search for the best output",
    "sample {run} --decoding.beam 3": "--decoding.beam is of the search for the best output; by `t2t sample`",
    "score {run} {tmp}/two {tmp}/two --decoding.alpha 0": "--decoding.alpha is of decoding; `t2t score` decodes",
    "evaluate {run} --task.vocabulary x": "--task.vocabulary cannot change in a trained run",
    "evaluate {run} --task.cleaning.ratio 3": "--task.cleaning.ratio cannot change in a trained run",
    "list --table 7": "invalid choice: 7",
    "translate {run} --sample --nucleus 7": "--nucleus is a number, above 0 and at most 1, not 7",
    "translate {run} --decoding.max_input 1": "--decoding.max_input is a whole number, at least 2, not 1",
    "translate {run} --average 0": "--average is a whole number, at least 1, not 0",
    "evaluate {run} --average -1": "--average",
    "evaluate {run} --beam 2 --decoding.beam 3": "--decoding.beam is given twice",
    "evaluate {tmp}/two": "{tmp}/two is not a run folder",
    "evaluate {tmp}/list": "{tmp}/list/experiment.json is damaged: it is not the record of a run",
    "train quickstart --name x": "--name is what an experiment is known by, not a knob",
    "train quickstart --paper.hours 3": "--paper.hours is what an experiment is known by, not a knob",
    "cost reversal --rate 0": "--rate is a number, above 0, not 0.0",
    "cost reversal --rate fast": "--rate is a number, above 0, not 'fast'",
    "cost reversal --mesh.data 0": "--mesh.data is -1 or at least 1, not 0",
    "cost reversal --mesh.fsdp 3": "--mesh.fsdp 3 does not divide an axis of",
    "cost reversal --mesh.data 64 --compile": "needs 64 devices; there are 8",
    "train reversal --mesh.model 3": "--mesh.model 3 does not divide an axis of",
    "train reversal --run {tmp}/new --task.corpus.test {tmp}/none": "no file {tmp}/none",
    "train reversal --run {tmp}/new --model.positions learned --model.max_length 8": "the model takes 8",
    "score {run} {tmp}/three {tmp}/two": "{tmp}/three has 3 lines, but {tmp}/two has 2",
    "score {run} {tmp}/three {tmp}/none": "no file {tmp}/none",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items())
def test_a_mistake_is_one_line_and_exit_code_2(t2t, run, tmp_path, words, complaint):
    (tmp_path / "train.tsv").write_text("a\tb\n")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "latin.tsv").write_bytes(b"a\tb\n\xe4\tb\n")
    (tmp_path / "three").write_text("a\nb\nc\n")
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "experiment.json").write_text("[1]")
    places = {"tmp": tmp_path, "run": run}
    code, out, err = t2t(*words.format(**places).split())
    assert code == 2 and out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("t2t: ") and complaint.format(**places) in last
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["train", "quickstart", "--run", "/dev/null/run"], ["translate", "{run}"]])
def test_a_platform_that_is_not_here(words, run):
    found = subprocess.run(
        [sys.executable, "-m", "t2t", *(word.format(run=run) for word in words)],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert "no device of platform 'cuda' here" in found.stderr.splitlines()[-1]


def test_an_error_about_a_file_whose_name_is_no_text(tmp_path):
    command = [sys.executable, "-m", "t2t", "evaluate", os.fsencode(tmp_path) + b"/gr\xfcn"]
    found = subprocess.run(command, capture_output=True)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        f"t2t: {tmp_path}/gr\\udcfcn is not a run folder: no experiment.json in it, and no such folder".encode()
    ]


def test_evaluating_a_text_that_is_not_utf_8(t2t, run, tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"ten\tten\nsun \xff\tsun\n")
    code, out, err = t2t("evaluate", run, "--split", "train", "--task.corpus.train", tmp_path / "train.tsv")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "t2t: the train split has a text that is not UTF-8: pair 2"


def test_translate_answers_while_its_input_is_still_open(run):
    command = [sys.executable, "-m", "t2t", "translate", run]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout
        for line in (b"ten cat sun\n", b"\n", b"old sea\n"):
            process.stdin.write(line)
            answer = process.stdout.readline()
            assert answer.endswith(b"\n") and (answer == b"\n") == (line == b"\n")
        process.stdin.write(b"red")  # a last line without an end
        process.stdin.close()
        assert process.stdout.readline().endswith(b"\n")
        assert process.wait() == 0


@pytest.mark.parametrize(("words", "code"), [("show quickstart | true", 0), ("translate {run} <&-", 2)])
def test_closed_ends_of_a_pipe(words, code, run):
    command = f"set -o pipefail; {sys.executable} -m t2t {words.format(run=run)}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.returncode == code
    assert "Traceback" not in found.stderr and "Exception" not in found.stderr
