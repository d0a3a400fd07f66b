"""The house itself: imports go one way, data needs no JAX, and what is cheap stays cheap."""

import ast
import functools
import graphlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import t2t
from t2t.batch import Sequences
from t2t.experiment import get, registered
from t2t.models.transformer import TransformerConfig

ROOT = Path(t2t.__file__).parent.parent
ORDER = re.findall(
    r"\w+",
    "errors storage knobs trees drawing batch distributed sharding models loss optimizer metrics data beam_search "
    "decode constraints memory experiment run checkpoint evaluate lines translate parse sample train cost bench launch "
    "interop report compilation progress arguments verbs __main__",
)  # low to high: a room imports itself and what stands before it


@functools.cache
def modules():
    """Every module of t2t by its dotted name."""
    paths = sorted((ROOT / "t2t").rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """What a file imports anywhere in it, local imports included: dotted names, of names in a module the module's."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in names)


def room(module):
    return module.split(".")[1]


def python(*arguments, **environment):
    """Runs a Python of its own in the repository's root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def inside(package, given):
    return given == package or given.startswith(f"{package}.")


# ------------------------------------------------------------------------------ Imports


def test_every_file_has_a_place_in_the_order():
    assert len(modules()) > 20
    assert {room(module) for module in modules() if module != "t2t"} - set(ORDER) == set()


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {name}"
        for module, path in modules().items()
        for name in imports(path)
        if inside("t2t", name)
        and (module == "t2t" or name == "t2t" or ORDER.index(room(name)) > ORDER.index(room(module)))
    ]
    assert wrong == []


def test_imports_have_no_circle():
    graph = {module: {name for name in imports(path) if inside("t2t", name)} for module, path in modules().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules())


def test_data_and_metrics_import_no_jax():
    low = [module for module in modules() if module.split(".")[1:2] in (["data"], ["metrics"])]
    assert len(low) > 6
    written = [(m, name) for m in low for name in imports(modules()[m]) if name.split(".")[0] in ("jax", "flax")]
    assert written == []
    code = f"import importlib, sys; [importlib.import_module(m) for m in {low}]; assert 'jax' not in sys.modules"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_experiments_are_reached_in_one_place():
    found = set()
    for module, path in modules().items():
        strings = [n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        if any(inside("experiments", name) for name in [*imports(path), *(s.strip("./") for s in strings)]):
            found.add(module)
        if any(re.match(r"experiments[./]", s) for s in strings):
            found.add(module)
    assert found == {"t2t.experiment"}


def test_importing_all_modules_reaches_no_experiment():
    names = [module for module in modules() if not module.endswith("__main__")]
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {names}]; assert 'experiments' not in sys.modules"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_no_file_of_odds_and_ends():
    files = [path for folder in ("t2t", "experiments", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    assert [path for path in files if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


# ------------------------------------------------------------------------------ Models


@functools.cache
def shapes(config):
    """The shapes of a model's weights; nothing is computed."""
    row = Sequences(*[jax.ShapeDtypeStruct((2, 8), np.int32)] * 3)
    return jax.eval_shape(config.build().init, jax.random.key(0), row, row)


def parameters(config):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config)))


def closed_formula(c):
    """The paper's architecture: one embedding, and layers with biases in the feed-forward alone."""
    attention = 2 * c.d_model * c.num_heads * (c.d_k + c.d_v)
    feed_forward = 2 * c.d_model * c.d_ff + c.d_ff + c.d_model
    norm = 2 * c.d_model
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    learned = c.max_length * c.d_model if c.positions == "learned" else 0
    return c.vocab_size * c.d_model + learned + c.num_layers * (encoder + decoder)


@pytest.mark.parametrize("each", registered().values(), ids=registered())
def test_models_of_all_experiments_build(each):
    assert parameters(each.model) > 0
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(each.model))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "config",
    [
        get("quickstart").model,
        TransformerConfig(),
        TransformerConfig(vocab_size=11, num_layers=1, d_model=6, d_ff=5, num_heads=3, d_k=4, d_v=7),
        TransformerConfig(vocab_size=100, d_model=7, positions="learned", max_length=30),
    ],
)
def test_parameters_are_those_of_the_formula(config):
    assert parameters(config) == closed_formula(config)


@pytest.mark.parametrize(("vocab_size", "count"), [(37_000, 63_045_632), (40_960, 65_073_152)])
def test_parameters_of_base(vocab_size, count):
    """Table 3 says 65 million."""
    assert parameters(TransformerConfig(vocab_size=vocab_size)) == count


# ------------------------------------------------------------------------------ What is cheap stays cheap


def test_help_imports_no_jax():
    done = python("-X", "importtime", "-m", "t2t", "--help")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    assert "usage: t2t" in done.stdout
    assert "t2t.arguments" in imported
    heavy = ("experiments", "jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "sentencepiece", "sacrebleu")
    assert [name for name in imported for package in heavy if inside(package, name)] == []


LIST = """
import json, sys
from t2t.__main__ import main
code = main(["list"])
loaded = [*sys.modules]
import jax
try:
    jax.devices()
except RuntimeError as error:  # the platform that is not there was not asked for before
    print(json.dumps([code, loaded, "nonesuch" in str(error)]), file=sys.stderr)
"""


def test_list_needs_no_device_and_little_else():
    done = python("-c", LIST, JAX_PLATFORMS="nonesuch")
    assert "quickstart" in done.stdout
    code, loaded, no_device = json.loads(done.stderr.splitlines()[-1])
    assert (code, no_device) == (0, True)
    assert "experiments.quickstart" in loaded
    heavy = ("orbax", "grain", "tensorflow", "tensorflow_datasets", "tensorboardX", "sacremoses")
    assert [name for name in loaded for package in heavy if inside(package, name)] == []


TENSORBOARD = """
from pathlib import Path
import sys
from t2t import run, train
with run.tensorboard(run.Run(Path(sys.argv[1])), 0) as board:
    board.add({"split": "train", "step": 3, "loss": 0.5})
assert "torch" not in sys.modules
import torch
"""


def test_pytorch_is_not_imported_for_tensorboard_and_is_there_afterwards(tmp_path):
    """tensorboardX imports it where it is installed, which takes seconds of every start and is for its tensors."""
    (tmp_path / "torch.py").write_text("print('imported')")
    done = python("-c", TENSORBOARD, str(tmp_path / "run"), PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert done.stdout == "imported\n"  # by the last line alone
    (written,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/loss" in written.read_bytes()


# ------------------------------------------------------------------------------ What is written


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows its files")
def test_nothing_of_the_workshop_is_written_down():
    """Addresses and folders of the machine that this was made on mean nothing elsewhere."""
    words = re.compile(r"py[p]i\.org|python[h]osted|/w[o]rk/|\.[l]ibrary")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    assert len(files) > 20
    texts = {str(path.relative_to(ROOT)): path.read_bytes().decode("utf-8", "ignore") for path in files}
    assert [(name, match[0]) for name, text in texts.items() for match in words.finditer(f"{name}\n{text}")] == []
