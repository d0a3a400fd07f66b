"""What a verb begins with: the experiment or run that is named, with the user's knobs on top."""

import dataclasses
from argparse import Namespace as Args
from typing import Any

from t2t import storage
from t2t.arguments import IDENTITY, of_a_run
from t2t.errors import UserError


def experiment(args: Args) -> Any:
    """A registered experiment with the user's knobs on top."""
    from t2t import experiment

    if fixed := [path for path in args.overrides if path.split(".")[0] in IDENTITY]:
        raise UserError(f"--{fixed[0]} is what an experiment is known by, not a knob")
    tree = experiment.get(args.name)
    if where := args.overrides.get("init_from"):
        from t2t import run

        tree = dataclasses.replace(tree, model=run.load(storage.folder(where))[1].model)
    return experiment.override(tree, args.overrides)


def opened(args: Args) -> tuple[Any, Any, Any]:
    """A run with the user's knobs on top, without its weights: (run, experiment, vocabulary)."""
    from t2t import experiment, run
    from t2t.sharding import MeshConfig

    if trained := [path for path in args.overrides if not of_a_run(path)]:
        can = "--decoding.*, --task.*, --mesh.* and --model.attention can"
        raise UserError(f"--{trained[0]} cannot change in a trained run; {can}")
    found, kept, vocabulary = run.load(storage.folder(args.run))
    kept = dataclasses.replace(kept, mesh=MeshConfig(data=1))  # whatever it was trained on
    short = {"beam": "decoding.beam", "alpha": "decoding.alpha"}
    given = {path: getattr(args, name) for name, path in short.items() if getattr(args, name, None) is not None}
    if twice := given.keys() & args.overrides.keys():
        raise UserError(f"--{twice.pop()} is given twice")
    tree = experiment.override(kept, {**given, **args.overrides})
    if tree.task.linearisation != kept.task.linearisation:
        raise UserError("--task.tags cannot change in a trained run: its vocabulary has no others")
    return found, tree, vocabulary


def loaded(args: Args) -> tuple[Any, Any, Any, Any, list[int]]:
    """A run with the user's knobs on top: (run, experiment, vocabulary, weights, the steps they are of)."""
    from t2t import checkpoint, compilation, knobs, run

    average = knobs.read(args.average, knobs.Count, "average")
    found, tree, vocabulary = opened(args)
    compilation.keep_compiled()
    params, steps = checkpoint.load_params(found.checkpoints, tree, average, mesh(args, tree))
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


def together(args: Args) -> tuple[Any, Any, Any]:
    """The runs as one, with the first's knobs: (experiment, vocabulary, weights)."""
    from t2t.models.ensemble import EnsembleConfig

    _, tree, vocabulary, params, _ = loaded(args)
    if not args.others:
        return tree, vocabulary, params
    models, weights = [tree.model], [params]
    for folder in args.others:
        _, other, its_own, params, _ = loaded(Args(**{**vars(args), "run": folder}))
        if its_own.fingerprint != vocabulary.fingerprint:
            raise UserError(f"{folder} has another vocabulary than {args.run}: only runs of one are decoded together")
        models.append(other.model)
        weights.append(params)
    return dataclasses.replace(tree, model=EnsembleConfig(tuple(models))), vocabulary, tuple(weights)
