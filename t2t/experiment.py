"""An experiment is one frozen value that says all that a run needs to know.

Values come from files in `experiments/`. `override` alone changes them: for variants, the command line and tests.
"""

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from t2t import knobs
from t2t.data.batching import BatchingConfig
from t2t.data.task import Task
from t2t.decode import DecodingConfig
from t2t.errors import UserError, unknown
from t2t.knobs import Count, NonNegative, Probability, Range, Whole
from t2t.models import Architecture
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig
from t2t.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Reported:
    """What the paper prints for an experiment; None: nothing."""

    perplexity: float | None = None  # per word piece, on the dev set
    bleu: float | None = None  # in the paper's reading
    parameters: float | None = None  # millions
    train_flops: float | None = None  # as the paper counts them
    hours: float | None = None  # of training on 8 P100s
    f1: float | None = None  # of labelled brackets, by EVALB


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained, on what, how, and which number of the paper it stands beside."""

    name: str  # what it is launched by
    reports: str  # the number of the paper that this reproduces, in words
    task: Task
    model: Architecture = TransformerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batching: BatchingConfig = BatchingConfig()
    decoding: DecodingConfig = DecodingConfig()
    mesh: MeshConfig = MeshConfig()
    table: Whole = 0  # the paper's table that it belongs to; 0: none
    paper: Reported = Reported()  # what the paper prints for it
    init_from: str = ""  # a run folder whose weights and vocabulary training begins with; none: random weights
    train_steps: Count = 100_000  # updates of the weights; paper: 100,000, big 300,000
    label_smoothing: Probability = 0.1  # ε_ls: probability taken from the truth, for all other pieces; paper: 0.1
    seed: Annotated[int, Range(low=0, high=2**31)] = 0  # of weights, order of the data and dropout
    log_every: Count = 100  # steps between lines of metrics.jsonl
    evaluate_every: Count = 1_500  # steps between perplexities on dev
    checkpoint_every: Count = 1_500  # steps between checkpoints; paper: 10 minutes, which are 1,500 steps, big 600
    checkpoint_minutes: NonNegative = 0.0  # minutes between checkpoints, in place of steps; 0: go by steps; paper: 10
    average: Count = 5  # last checkpoints averaged for the final evaluation, and kept; paper: 5, big 20
    final_evaluation: Literal["test", "dev", "none"] = "test"  # the split to decode and score when training ends
    base: str = ""  # the experiment that this is a variant of

    def variant(
        self, name: str, reports: str, changes: Mapping[str, Any], paper: Reported = Reported()
    ) -> "Experiment":
        """A registered copy with `changes`, such as {"model.d_ff": 4096}; never a variant of a variant."""
        if self.base:
            raise ValueError(f"{name}: {self.name} is a variant of {self.base}; derive from that instead")
        fresh = dataclasses.replace(self, name=name, reports=reports, paper=paper, base=self.name)
        return register(override(fresh, changes))


# These may change between the parts of one run: they say how long it is, where it runs and what is written down.
RESUMABLE = {
    "train_steps",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "average",
    "final_evaluation",
    "mesh",
    "decoding",
    "reports",
    "table",
    "paper",
}

_REGISTERED: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Makes an experiment known by its name; two of one name are an error of whoever wrote them."""
    if experiment.name in _REGISTERED:
        raise ValueError(f"two experiments are called {experiment.name!r}")
    _REGISTERED[experiment.name] = experiment
    return experiment


@functools.cache
def registered() -> Mapping[str, Experiment]:
    """All experiments by name: every file of the folder experiments/ beside this package is imported, once."""
    folder = Path(__file__).parent.parent / "experiments"
    # By its place, not by the search path: a folder of that name in the working directory is somebody else's.
    spec = importlib.util.spec_from_file_location(
        "experiments", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {folder}")
    package = sys.modules["experiments"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"experiments.{module.name}")
    return _REGISTERED


def get(name: str) -> Experiment:
    """The experiment called `name`.

    Raises:
        UserError: there is none; names the near misses.
    """
    if name not in registered():
        if (Path(name) / "experiment.json").is_file():
            raise UserError(f"{name} is a run, not an experiment: t2t train NAME --init_from {name} begins from it")
        raise unknown("experiment", name, registered())
    return registered()[name]


def override(tree: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a tree of dataclasses with the fields at dotted paths replaced: {"model.num_heads": 1}.

    Text stands for the value that it spells, as on a command line.

    Raises:
        UserError: no such field, wrong type, out of range, or a combination that the config refuses.
    """
    return _override(tree, {tuple(path.split(".")): value for path, value in changes.items()}, ())


def _override(tree: Any, changes: Mapping[tuple[str, ...], Any], above: tuple[str, ...]) -> Any:
    """All changes of one part at once, so that their order does not matter; `above` is the path of `tree`."""
    values: dict[str, Any] = {}
    inside: dict[str, dict[tuple[str, ...], Any]] = {}
    for (key, *rest), value in changes.items():
        path = ".".join((*above, key, *rest))
        if key not in {f.name for f in dataclasses.fields(tree)}:
            raise unknown("knob", f"--{path}", [f"--{leaf}" for leaf in leaves(tree, ".".join(above))])
        if not rest:
            values[key] = _value(tree, key, value, path)
        elif not dataclasses.is_dataclass(getattr(tree, key)):
            raise UserError(f"no knob '--{path}': {'.'.join((*above, key))} has no parts")
        else:
            inside.setdefault(key, {})[tuple(rest)] = value
    for key, part in inside.items():
        values[key] = _override(values.get(key, getattr(tree, key)), part, (*above, key))
    return dataclasses.replace(tree, **values)


def _value(tree: Any, key: str, value: Any, path: str) -> Any:
    declared, old = knobs.hints(type(tree))[key], getattr(tree, key)
    if not isinstance(value, str):
        return knobs.check(value, declared, path)
    if dataclasses.is_dataclass(old):
        raise UserError(f"--{path} has parts, such as --{next(iter(leaves(old, path)))}; set those")
    return knobs.read(value, declared, path)


def leaves(tree: Any, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Every knob of a tree by its dotted path: (value, declared type, comment)."""
    return dict(_leaves(tree, prefix))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, Any, str]]]:
    declared, comments = knobs.hints(type(tree)), knobs.comments(type(tree))
    for field in dataclasses.fields(tree):
        path, value = f"{prefix}.{field.name}".lstrip("."), getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, path)
        else:
            yield path, (value, declared[field.name], comments[field.name])


def with_attention(experiment: Experiment, kernel: str) -> Experiment:
    """The experiment with attention computed so, if its model has the choice: the same function, by other means."""
    return override(experiment, {"model.attention": kernel}) if hasattr(experiment.model, "attention") else experiment


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The knobs in which two trees differ, by path; None where one of them has no such knob."""
    values = [{path: leaf[0] for path, leaf in leaves(tree).items()} for tree in (a, b)]
    paths = list(dict.fromkeys([*values[0], *values[1]]))
    pairs = {path: (values[0].get(path), values[1].get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def to_json(value: Any) -> Any:
    """A tree of dataclasses as plain JSON; each keeps the name of its class under "class"."""
    if not dataclasses.is_dataclass(value):
        return value
    cls = type(value)
    fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"class": f"{cls.__module__}.{cls.__name__}", **fields}


def from_json(value: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
        UserError: it names a class or a field that this version of t2t does not have.
    """
    if not isinstance(value, dict):
        return value
    fields = {key: from_json(part) for key, part in value.items() if key != "class"}
    written = str(value.get("class"))
    module, _, name = written.rpartition(".")
    if module.split(".")[0] not in ("t2t", "experiments"):
        raise UserError(f"an experiment is made of parts of t2t, not of {written!r}")
    registered()  # so that `experiments` is the one beside this package, wherever we stand
    try:
        cls = getattr(importlib.import_module(module), name)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise TypeError("it is no part of an experiment")
        knobs.check_all(cls, fields, f"{name}.")
        return cls(**fields)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"this version of t2t cannot read {written} of an older or newer one: {error}") from None
