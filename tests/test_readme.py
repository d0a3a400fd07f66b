"""Every command of the README runs, and every file it names is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import children
import pytest
import toys

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SETUP = [line for line in COMMANDS if line.startswith("pip install")]
SHORT = " --train_steps 5 --checkpoint_every 1 --final_evaluation none --batching.shapes 1"
TERSE = " --decoding.extra_length 5 --decoding.rows 16"  # what has hardly been trained ends nothing on its own


def shell(command, folder):
    """The exit code of a command of the README, its output, and what it said. Those of t2t alone have less data."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = toys.environment(folder, PATH=path)
    if not command.startswith("t2t ") or re.search("[|>{*]", command):
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr
    child = children.Child(children.on_little_data, shlex.split(command)[1:], folder, env, folder / "out")
    _, said = child.communicate()
    return child.returncode, (folder / "out").read_text(), said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory in which the quickstart has been trained, for a few steps."""
    folder = tmp_path_factory.mktemp("readme")
    code, _, said = shell(f"t2t train quickstart{SHORT}{TERSE}", folder)
    assert code == 0, said
    return folder


def test_the_two_commands_are_what_continuous_integration_runs():
    assert SETUP == ["pip install -e . && t2t train quickstart", "pip install -e '.[test]' && pytest"]
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and 'eval "$tests"' in script and 'eval "$main_job' in script


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in SETUP])
def test_a_command_runs(command, folder):
    command = command.split("  #")[0].rstrip()
    command += SHORT * ("t2t train" in command) + TERSE * ("t2t train quickstart" in command)
    code, out, said = shell(command, folder)
    assert code == 0, said
    assert out or "train" in command or ">" in command


def test_the_lines_of_python_translate(folder):
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (folder / "lines.py").write_text(lines)
    code, out, said = shell(f"{sys.executable} lines.py", folder)
    assert code == 0, said
    assert sorted(line.split(" ")[0] for line in out.splitlines()) == ["0", "1"]


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@[A-Z0-9]+@", README)


def test_the_files_it_names_are_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    (block,) = (block for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL) if block.startswith("t2t/"))
    for name in re.findall(r"[\w/]+\.py", block):
        assert any(path.as_posix().endswith(name) for path in ROOT.rglob("*.py")), name
