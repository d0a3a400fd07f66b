"""Experiments as values: overrides and what they refuse, variants, JSON, differences."""

import dataclasses
import json
import re

import pytest

from t2t import experiment
from t2t.data.corpora import Embedded, Text
from t2t.data.translation import Translation
from t2t.errors import UserError
from t2t.experiment import (
    RESUMABLE,
    Experiment,
    Reported,
    differences,
    from_json,
    get,
    leaves,
    override,
    register,
    registered,
    to_json,
)
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig
from t2t.sharding import MeshConfig

QUICKSTART = get("quickstart")
ALL = pytest.mark.parametrize("each", registered().values(), ids=registered())


@pytest.fixture
def registry(monkeypatch):
    """What is registered, to add to for the length of a test."""
    monkeypatch.setattr(experiment, "_REGISTERED", dict(registered()))
    return experiment._REGISTERED


def value(tree, path):
    return leaves(tree)[path][0]


# ------------------------------------------------------------------------------ Every experiment


@ALL
def test_every_knob_has_a_comment(each):
    assert [path for path, (_, _, comment) in leaves(each).items() if not comment.strip()] == []


@ALL
def test_every_knob_reads_as_it_is_shown(each):
    assert override(each, {path: str(shown) for path, (shown, _, _) in leaves(each).items()}) == each


@ALL
def test_every_value_is_allowed(each):
    assert override(each, {path: shown for path, (shown, _, _) in leaves(each).items()}) == each


@ALL
def test_json_and_back(each):
    assert from_json(json.loads(json.dumps(to_json(each)))) == each


@ALL
def test_experiments_say_what_they_report(each):
    assert registered()[each.name] is each
    assert each.reports.strip()
    assert not each.base or (each.base in registered() and not registered()[each.base].base)


def test_resumable_knobs_exist():
    assert {field.name for field in dataclasses.fields(Experiment)} >= RESUMABLE


# ------------------------------------------------------------------------------ Overrides


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("train_steps", 20, 20),
        ("train_steps", "1e5", 100_000),
        ("train_steps", "1_000", 1_000),
        ("model.d_ff", "1024", 1024),
        ("model.p_drop", "0", 0.0),
        ("model.dtype", "bfloat16", "bfloat16"),
        ("optimizer.scale", 2, 2.0),
        ("optimizer.epsilon", "1e-8", 1e-8),
        ("mesh.data", "-1", -1),
        ("final_evaluation", "none", "none"),
        ("task.target", "fr", "fr"),
        ("task.corpus.target_column", "0", 0),
        ("seed", 2**31, 2**31),
    ],
)
def test_override(path, given, expected):
    changed = override(QUICKSTART, {path: given})
    assert value(changed, path) == expected
    assert type(value(changed, path)) is type(expected)
    assert all(shown == value(QUICKSTART, other) for other, (shown, _, _) in leaves(changed).items() if other != path)


def test_override_leaves_the_original_alone():
    before = to_json(QUICKSTART)
    assert override(QUICKSTART, {}) == QUICKSTART
    override(QUICKSTART, {"model.d_ff": 1, "train_steps": 1})
    assert to_json(QUICKSTART) == before


def test_override_of_whole_parts():
    corpus = Text(train="a", dev="b")
    changed = override(QUICKSTART, {"mesh": MeshConfig(data=2), "task.corpus": corpus, "task.corpus.test": "c"})
    assert changed.mesh == MeshConfig(data=2)
    assert changed.task == Translation(Text(train="a", dev="b", test="c"), "en", "de")


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("train_step", "--train_steps"),
        ("model.d_modle", "--model.d_model"),
        ("model.dropout", "--model.p_drop"),
        ("modle.d_model", "--model.d_model"),
        ("d_model", "--model.d_model"),
        ("optimizer.warmup", "--optimizer.warmup_steps"),
        ("task.corpus.nam", "--task.corpus.name"),
    ],
)
def test_unknown_knobs_name_the_near_misses(path, near):
    with pytest.raises(UserError) as error:
        override(QUICKSTART, {path: "1"})
    assert f"--{path}" in str(error.value)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("path", "given", "allowed"),
    [
        ("model.d_model", -4, "a whole number, at least 1"),
        ("model.d_model", "-4", "a whole number, at least 1"),
        ("model.d_model", 12.0, "a whole number"),
        ("model.d_model", "12.5", "a whole number"),
        ("model.d_model", True, "a whole number"),
        ("model.d_model", None, "a whole number"),
        ("model.p_drop", 1.5, "at least 0 and below 1"),
        ("model.p_drop", 1, "at least 0 and below 1"),
        ("model.p_drop", "1", "at least 0 and below 1"),
        ("model.p_drop", "nan", "at least 0 and below 1"),
        ("model.vocab_size", "3", "at least 4"),
        ("model.dtype", "float16", "float32"),
        ("model.positions", 3, "sinusoid"),
        ("optimizer.scale", 0, "above 0"),
        ("mesh.data", -2, "at least -1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**31 + 1, "at most"),
        ("train_steps", "many", "a whole number"),
        ("train_steps", "inf", "a whole number"),
        ("reports", 3, "text"),
        ("model", OptimizerConfig(), "Architecture"),
        ("task", None, "Task"),
        ("task.corpus", 3, "Corpus"),
    ],
)
def test_values_that_are_not_allowed(path, given, allowed):
    with pytest.raises(UserError, match=f"--{path}") as error:
        override(QUICKSTART, {path: given})
    assert allowed in str(error.value)


@pytest.mark.parametrize("path", ["model", "task", "task.corpus", "mesh"])
def test_whole_parts_take_no_text(path):
    with pytest.raises(UserError, match=rf"^--{path} has parts, such as --{path}\.\w+") as error:
        override(QUICKSTART, {path: "base"})
    assert str(error.value).split("such as --")[1].split(";")[0] in leaves(QUICKSTART)


@pytest.mark.parametrize(("path", "leaf"), [("train_steps.x", "train_steps"), ("model.d_ff.x.y", "model.d_ff")])
def test_leaves_have_no_parts(path, leaf):
    with pytest.raises(UserError, match=rf"'--{path}': {leaf} has no parts"):
        override(QUICKSTART, {path: "1"})


def test_odd_width_with_sinusoids():
    with pytest.raises(UserError, match=r"--model.d_model must be even .*129"):
        override(QUICKSTART, {"model.d_model": 129})
    with pytest.raises(UserError, match=r"--model.d_model must be even .*129"):
        override(
            override(QUICKSTART, {"model.positions": "learned", "model.d_model": 129}), {"model.positions": "sinusoid"}
        )


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_overrides_does_not_matter(order):
    """What counts is the combination that comes out, not what lies between."""
    changes = dict([("model.positions", "learned"), ("model.d_model", "129")][::order])
    assert override(QUICKSTART, changes).model.d_model == 129


# ------------------------------------------------------------------------------ Variants and names


def test_variant(registry):
    variant = QUICKSTART.variant("wide", "nothing", {"model.d_ff": 4096, "table": 3})
    assert registry["wide"] is variant
    assert variant.base == "quickstart"
    assert set(differences(QUICKSTART, variant)) == {"name", "reports", "base", "model.d_ff", "table"}


def test_no_variant_of_a_variant(registry):
    variant = QUICKSTART.variant("wide", "nothing", {"model.d_ff": 4096})
    with pytest.raises(ValueError, match="wider: wide is a variant of quickstart"):
        variant.variant("wider", "nothing", {"model.d_ff": 8192})
    assert "wider" not in registry


def test_variants_are_checked(registry):
    with pytest.raises(UserError, match=r"--model.d_model"):
        QUICKSTART.variant("wide", "nothing", {"model.d_modle": 512})
    assert "wide" not in registry


def test_two_of_one_name(registry):
    with pytest.raises(ValueError, match="two experiments are called 'quickstart'"):
        register(dataclasses.replace(QUICKSTART, seed=1))
    with pytest.raises(ValueError, match="two experiments are called 'quickstart'"):
        QUICKSTART.variant("quickstart", "nothing", {})
    assert registry["quickstart"] is QUICKSTART


def test_get_names_the_near_misses():
    with pytest.raises(UserError, match="no experiment 'quikstart'; did you mean quickstart"):
        get("quikstart")
    with pytest.raises(UserError, match=r"no experiment 'zzz'; allowed: .*quickstart"):
        get("zzz")


# ------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "foreign",
    [
        {"class": "os.system", "command": "true"},
        {"class": "subprocess.Popen", "args": "true"},
        {"class": "builtins.dict"},
        {"class": "dict"},
        {"class": "t2tish.experiment.Experiment"},
        {"class": "t2t.progress.say", "message": "a function, called because a file says so"},
        {"class": "t2t.experiment.Path"},
    ],
)
def test_only_our_dataclasses_are_read(foreign, capsys):
    for tree in (foreign, {**to_json(QUICKSTART), "task": foreign}):
        with pytest.raises(UserError, match=foreign["class"]):
            from_json(tree)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        {"class": "t2t.optimizer.AdaFactor"},
        {"class": "t2t.nowhere.OptimizerConfig"},
        {"momentum": 0.9},
    ],
)
def test_json_of_another_version(change):
    tree = to_json(QUICKSTART)
    with pytest.raises(UserError, match=r"cannot read t2t\.\w+\.\w+ of an older or newer one"):
        from_json({**tree, "optimizer": {**tree["optimizer"], **change}})


def test_what_the_paper_reports_is_kept():
    each = dataclasses.replace(QUICKSTART, paper=Reported(bleu=25.8, parameters=65, hours=12))
    assert from_json(json.loads(json.dumps(to_json(each)))) == each
    with pytest.raises(UserError, match=r"Reported\.hours is a number or None"):
        from_json({**to_json(each), "paper": {**to_json(each.paper), "hours": "twelve"}})


def test_json_without_a_class():
    tree = to_json(QUICKSTART)
    with pytest.raises(UserError):
        from_json({**tree, "optimizer": {"warmup_steps": 3}})


# ------------------------------------------------------------------------------ Differences


def test_differences():
    assert differences(QUICKSTART, QUICKSTART) == {}
    changed = override(QUICKSTART, {"model.d_ff": 7, "seed": 3})
    assert differences(QUICKSTART, changed) == {"model.d_ff": (QUICKSTART.model.d_ff, 7), "seed": (0, 3)}
    assert differences(changed, QUICKSTART) == {"model.d_ff": (7, QUICKSTART.model.d_ff), "seed": (3, 0)}


def test_differences_between_other_parts():
    found = differences(Translation(Embedded("quickstart"), "en", "de"), Translation(Text("a", "b"), "en", "de"))
    assert found["corpus.name"] == ("quickstart", None)
    assert found["corpus.train"] == (None, "a")
    assert "source" not in found


def test_leaves_are_in_order_and_typed():
    paths = list(leaves(QUICKSTART))
    assert paths[:5] == [
        "name",
        "reports",
        "task.corpus.name",
        "task.corpus.source_column",
        "task.corpus.target_column",
    ]
    assert next(iter(leaves(TransformerConfig(), "model"))) == "model.vocab_size"
    shown, declared, comment = leaves(QUICKSTART)["model.d_ff"]
    assert (shown, declared) == (QUICKSTART.model.d_ff, experiment.Count)
    assert "feed-forward" in comment


# ------------------------------------------------------------------------------ The paper's values


def spelled(text):
    """A number as a comment spells it: 100,000 or 1e-9."""
    return float(text.replace(",", ""))


@pytest.mark.parametrize(("name", "word"), [("ende_base", "paper: "), ("ende_big", "big ")])
def test_the_comments_give_the_values_of_the_papers_models(name, word):
    found = 0
    for path, (value, _, comment) in leaves(get(name)).items():
        if (match := re.search(rf"paper: .*?{word}|{word}", comment)) and isinstance(value, (int, float)):
            number = re.match(r"[\d.,e-]*\d", comment[match.end() :])
            if number and path not in ("checkpoint_minutes", "checkpoint_every"):  # 10 minutes stand beside steps
                assert spelled(number[0]) == value, path
                found += 1
    assert found >= (18 if word == "paper: " else 5)
