"""The notebooks run from top to bottom, with few steps of a small model, and show what they promise."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import nbformat
import pytest
import toys
from nbclient import NotebookClient

from t2t.__main__ import VERBS
from t2t.experiment import registered
from t2t.trees import parse, words

FOLDER = Path(__file__).parent.parent / "launch" / "colab"
PATHS = sorted(FOLDER.glob("*.ipynb"))
STEPS = 40
KNOBS = (
    "--model.vocab_size 500 --model.num_layers 1 --model.d_model 64 --model.d_ff 64 --model.num_heads 2 --model.d_k 16 "
    "--model.d_v 16 --optimizer.warmup_steps 30 --batching.shapes 1 --batching.max_length {longest} --log_every 20 "
    "--decoding.beam {beam} --decoding.extra_length 4 --decoding.rows 64"
)


def read(path):
    return nbformat.read(path, as_version=4)


def source(path, name):
    (cell,) = (cell for cell in read(path).cells if cell.id == name)
    return cell.source


# ------------------------------------------------------------------------------ As they are written


def test_there_are_three():
    assert [path.stem for path in PATHS] == ["1_train_and_translate", "2_the_paper", "3_parsing"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_kept_is_clean(path):
    """No outputs, an id a cell, and one line of the file for each line of a cell."""
    notebook, text = read(path), path.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_badge_opens_this_notebook_from_where_t2t_is_installed(path):
    (repository,) = re.findall(r'^REPOSITORY = "https://github.com/([\w./-]+)"', source(path, "install"), re.MULTILINE)
    opened = f"https://colab.research.google.com/github/{repository}/blob/main/launch/colab/{path.name}"
    assert f"]({opened})" in source(path, "title")


def test_all_begin_alike():
    for name in ("install", "about_devices", "devices"):
        assert len({source(path, name) for path in PATHS}) == 1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_but_the_first_cell_installs(path):
    first, *others = (cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert first == source(path, "install")
    assert not re.search(r"--?U\b|--upgrade|--force|--ignore", first)
    assert [text for text in others if re.search(r"\b(pip|uv|conda|apt)\b", text)] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_verbs_and_experiments_it_names_are_there(path):
    text = "\n".join(cell.source for cell in read(path).cells)
    commands = re.findall(r"(?:`|^!|\| )t2t (\w+)(?: ([a-z]\w*))?(?: ([a-z]\w*))?", text, re.MULTILINE)
    assert len(commands) > 3
    assert {verb for verb, *_ in commands} - {verb.name for verb in VERBS} == set()
    assert {name for _, *names in commands for name in names if name} - registered().keys() == set()


# ------------------------------------------------------------------------------ The cell that installs


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the first cell as if these packages were installed; gives the pip commands and the constraints of each."""

    def run(installed, failing=False):
        calls = []

        def pip(command, **_):
            calls.append((command[1:], Path(command[command.index("--constraint") + 1]).read_text().split()))
            return SimpleNamespace(returncode=int(failing), stdout="t2t 0.1.0 depends on jax>=0.7.2")

        found = [SimpleNamespace(name=name, version=version) for name, version in installed.items()]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
        monkeypatch.setattr(subprocess, "run", pip)
        exec(source(PATHS[0], "install"), {})
        return calls

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with mock.patch.dict(os.environ):
        yield run


def clone(folder):
    (folder / "t2t").mkdir()
    (folder / "t2t" / "__main__.py").touch()
    return str(folder)


def test_what_is_installed_stays(install, capsys):
    assert install({"t2t": "0.1.0", "jax": "0.10.0"}) == []
    assert "installed already" in capsys.readouterr().out


def test_a_clone_is_installed_and_jax_kept(install, tmp_path):
    here = clone(tmp_path)
    ((command, kept),) = install({"jax": "0.9.5", "jaxlib": "0.9.5+cuda12", "numpy": "2.1.3", "flax": "0.11.2"})
    assert command[:3] == ["-m", "pip", "install"] and command[-2:] == ["-e", here]
    assert kept == ["jax==0.9.5", "jaxlib==0.9.5+cuda12", "numpy==2.1.3"]
    assert sys.path[0] == here


def test_a_clone_comes_before_what_is_installed_from_elsewhere(install, tmp_path):
    here = clone(tmp_path)
    ((command, _),) = install({"t2t": "0.1.0"})
    assert command[-1] == here


def test_without_an_address_nothing_is_installed(install):
    with pytest.raises(SystemExit, match="REPOSITORY"):
        install({})


def test_jax_that_is_too_old_ends_the_notebook(install, tmp_path, capsys):
    clone(tmp_path)
    with pytest.raises(SystemExit, match=r"newer jax than this runtime has \(0\.6\.2\)"):
        install({"jax": "0.6.2"}, failing=True)
    assert "depends on jax>=0.7.2" in capsys.readouterr().out


@pytest.mark.parametrize("path", [PATHS[0], PATHS[2]], ids=lambda path: path.stem)
def test_a_run_may_be_kept_on_drive(path, monkeypatch):
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", mock.Mock(spec=ModuleType, drive=drive))
    text, names = source(path, "drive"), {"RUN": "runs/x"}
    exec(text, names)
    assert (names["RUN"], mounted) == ("runs/x", [])
    exec(text.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"), names)
    assert mounted == ["/content/drive"]
    assert names["RUN"].startswith("/content/drive/MyDrive/")


# ------------------------------------------------------------------------------ From top to bottom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory for all: the second notebook finds what the first trained, on little data."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("import children\nchildren.have_little_data()\n")
    return folder


def executed(path, folder, longest=32, beam=2):
    """The outputs of each cell by its name: the text, and the pictures."""
    there = [str(folder / "site"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = toys.environment(folder, PYTHONPATH=os.pathsep.join(filter(None, there)))
    env |= {"T2T_NOTEBOOK_STEPS": str(STEPS), "T2T_NOTEBOOK_KNOBS": KNOBS.format(longest=longest, beam=beam)}
    notebook = read(path)
    where = {"metadata": {"path": folder}}
    # What a cell prints may come in any number of pieces.
    NotebookClient(notebook, timeout=600, resources=where, coalesce_streams=True).execute(env=env)
    found = {cell.id: [said(output) for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"}
    wrong = [name for name, texts in found.items() if re.search(r"^t2t: |^Traceback|Warning", "".join(texts), re.M)]
    assert wrong == [], [found[name] for name in wrong]
    return found


def said(output):
    if output.output_type == "stream":
        return output.text.replace("\r\n", "\n")
    return next(output.data[kind] for kind in ("image/svg+xml", "text/html", "text/plain") if kind in output.data)


def pictures(texts):
    return "".join(texts).count("<svg")


def metrics(folder, name):
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["split"] == "train"]


def test_train_and_translate(folder):
    found = executed(PATHS[0], folder)
    assert metrics(folder, "quickstart") == [*range(20, STEPS + 1, 20)]
    assert "on ['cpu']" in found["devices"][0]
    assert re.search(r"^sacrebleu +\d+\.\d\d \[", "".join(found["train"]), re.MULTILINE)
    assert f"step {STEPS:5,}  dev perplexity" in found["metrics"][0]
    lines = "".join(found["translated"]).splitlines()
    assert len(lines) == 3 and all(lines)
    best, second = (float(line.split("\t")[0]) for line in "".join(found["beam"]).splitlines())
    assert 0 > best >= second
    assert pictures(found["attention"]) == 1 and ">?</text>" in found["attention"][-1]


def test_the_paper(folder):
    found = executed(PATHS[1], folder)
    cost = "".join(found["cost"])
    assert "63,045,632" in cost and "214,171,648" in cost
    assert "model.d_model: 512 -> 1024" in found["diff"][0]
    assert found["parameters"][0].splitlines()[-1].split() == ["63.05", "M", "in", "all"]
    assert float(found["by_hand"][0].split()[-1]) < 1e-5
    assert "softmax" in found["equation"][0] and "MultiHeadAttention" in found["heads"][0]
    assert [pictures(found[name]) for name in ("mask", "positions", "pictures")] == [1, 1, 2]  # two heads
    assert "layer 1, head 2" in found["pictures"][0]


def test_parsing(folder):
    found = executed(PATHS[2], folder, longest=110, beam=1)
    assert metrics(folder, "parse_quickstart") == [*range(20, STEPS + 1, 20)]
    trained = re.search(r"^f1 +(\d+\.\d\d) \[", "".join(found["train"]), re.MULTILINE)
    again = re.search(r"^Bracketing FMeasure +(\d+\.\d\d) ", "".join(found["scores"]), re.MULTILINE)
    assert trained[1] == again[1] and float(again[1]) > 0
    trees = [parse(line) for line in "".join(found["parse"]).splitlines() if line.startswith("(")]
    texts = [" ".join(words(tree)) for tree in trees]
    assert texts == ["The mice were kept in cages .", "We found that the gene is expressed in the brain ."]
    names = ("tree", "drawn", "difference", "attention")
    assert [pictures(found[name]) for name in names] == [1, 2, 2, 1]
