"""What a verb begins with: the experiment or run that is named, with the user's knobs on top."""

import dataclasses
from argparse import Namespace as Args
from pathlib import Path
from typing import Any

from t2t import storage
from t2t.arguments import IDENTITY, of_a_run
from t2t.errors import UserError


def experiment(args: Args, folder: Path | None = None) -> Any:
    """A registered experiment with the user's knobs on top.

    `folder` is that of its run, if it has one. A run that was begun with another's weights needs that one no more.
    """
    from t2t import experiment

    if fixed := [path for path in args.overrides if path.split(".")[0] in IDENTITY]:
        raise UserError(f"--{fixed[0]} is what an experiment is known by, not a knob")
    tree = experiment.get(args.name)
    if where := args.overrides.get("init_from"):
        from t2t import run

        found = (folder and run.going_on(folder, where)) or run.load(storage.folder(where))
        tree = dataclasses.replace(tree, model=found[1].model)
    return experiment.override(tree, args.overrides)


def opened(args: Args) -> tuple[Any, Any, Any]:
    """A run with the user's knobs on top, without its weights: (run, experiment, vocabulary)."""
    from t2t import experiment, run
    from t2t.sharding import MeshConfig

    if trained := [path for path in args.overrides if not of_a_run(path)]:
        can = "--decoding.*, the data of --task.*, --mesh.*, --model.attention and --model.dtype can"
        raise UserError(f"--{trained[0]} cannot change in a trained run; {can}")
    found, kept, vocabulary = run.load(storage.folder(args.run))
    kept = dataclasses.replace(kept, mesh=MeshConfig(data=1))  # whatever it was trained on
    short = {"beam": "decoding.beam", "alpha": "decoding.alpha"}
    given = {path: getattr(args, name) for name, path in short.items() if getattr(args, name, None) is not None}
    if twice := given.keys() & args.overrides.keys():
        raise UserError(f"--{twice.pop()} is given twice")
    if "model.attention" in args.overrides and getattr(kept.model, "p_attention", 0):
        given["model.p_attention"] = "0"  # only training drops weights, which the other kernels cannot
    tree = experiment.override(kept, {**given, **args.overrides})
    if tree.task.linearisation != kept.task.linearisation:
        raise UserError("--task.tags cannot change in a trained run: its vocabulary has no others")
    return found, tree, vocabulary


def loaded(args: Args) -> tuple[Any, Any, Any, Any, list[int]]:
    """A run with the user's knobs on top: (run, experiment, vocabulary, weights, the steps they are of)."""
    return _with_weights(args, *opened(args))


def _with_weights(args: Args, found: Any, tree: Any, vocabulary: Any) -> tuple[Any, Any, Any, Any, list[int]]:
    from t2t import checkpoint, compilation, knobs, run

    average = knobs.read(args.average, knobs.Count, "average")
    compilation.keep_compiled()
    params, steps = checkpoint.load_params(found, tree, average, mesh(args, tree))
    return found, tree, vocabulary, params, run.averaged(found) or steps


def mesh(args: Args, tree: Any) -> Any:
    """The experiment's mesh, set until the verb ends; None where it is a single device."""
    from t2t import checkpoint
    from t2t.sharding import check_layout, make_mesh, on

    mesh = make_mesh(tree.mesh)
    if mesh.size == 1:
        return None
    check_layout(mesh, checkpoint.abstract_params(tree))
    args.stack.enter_context(on(mesh))
    return mesh


def together(args: Args) -> tuple[list[Any], Any, Any, Any]:
    """The runs as one, with the first's knobs: (its members, experiment, vocabulary, weights)."""
    from t2t.models.ensemble import EnsembleConfig
    from t2t.run import Member

    each = [opened(Args(**{**vars(args), "run": folder})) for folder in (args.run, *args.others)]
    _check_alike(each)
    found = [_with_weights(args, *one) for one in each]
    members = [Member(str(run.folder), steps) for run, _, _, _, steps in found]
    _, tree, vocabulary, params, _ = found[0]
    if len(found) == 1:
        return members, tree, vocabulary, params
    model = EnsembleConfig(tuple(other.model for _, other, *_ in found))
    return members, dataclasses.replace(tree, model=model), vocabulary, tuple(params for *_, params, _ in found)


def _check_alike(each: list[tuple[Any, Any, Any]]) -> None:
    """Raises UserError unless these runs, as `opened` gives them, can be decoded together."""
    (first, tree, vocabulary), *others = each
    for run, other, its_own in others:
        if its_own.fingerprint != vocabulary.fingerprint:
            raise UserError(
                f"{run.folder} has another vocabulary than {first.folder}: only runs of one are decoded together"
            )
        if (there := _does(other.task)) != (here := _does(tree.task)):
            raise UserError(f"{run.folder} {there}, but {first.folder} {here}: they cannot be decoded together")


def _does(task: Any) -> str:
    """What was learned, in words."""
    from t2t.data.translation import Translation

    if isinstance(task, Translation):
        return f"translates {task.source} into {task.target}"
    return "parses" if task.linearisation else "models text"
