"""The exercise that the README counts the lines of: a new architecture, data set and experiment, each one new file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = {
    "bag_of_words.py": "t2t/models/bag_of_words.py",
    "numbers.py": "t2t/data/numbers.py",
    "exercise.py": "experiments/exercise.py",
}


def test_three_new_files_make_an_experiment_that_trains_decodes_and_shards(tmp_path):
    for package in ("t2t", "experiments"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, place in FILES.items():
        shutil.copy(Path(__file__).parent / "extending" / file, tmp_path / place)
    env = {**os.environ, "T2T_DATA": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}

    def t2t(*words, stdin=""):
        command = [sys.executable, "-m", "t2t", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, input=stdin, capture_output=True, text=True, check=True)

    out = t2t("train", "exercise", "--mesh.fsdp", "2", "--mesh.model", "2").stdout
    assert "sacrebleu" in out
    rows = [json.loads(line) for line in (tmp_path / "runs/exercise/metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train", "dev"]
    assert t2t("translate", "runs/exercise", "--beam", "2", stdin="4 0 7\n\n").stdout.count("\n") == 2
    found = t2t("diff", "exercise", "exercise_wide").stdout
    assert "model.d_model: 64 -> 128" in found and found.splitlines()[-1] == "base:  -> exercise"
    assert json.loads(t2t("cost", "exercise", "--json").stdout)["flops_per_step"] > 0


def test_the_readme_says_how_many_lines_each_took():
    readme = (ROOT / "README.md").read_text()
    for file, place in FILES.items():
        lines = len((Path(__file__).parent / "extending" / file).read_text().splitlines())
        assert f"`{place}`, {lines} lines" in readme
