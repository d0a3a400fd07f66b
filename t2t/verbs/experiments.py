"""Verbs on experiments: what they are, what they cost, training them here or as a job."""

import dataclasses
import json
from argparse import Namespace as Args
from pathlib import Path
from typing import Any

from t2t import storage
from t2t.arguments import Option, Verb
from t2t.errors import UserError, unknown
from t2t.verbs import opening, printing
from t2t.verbs.options import JSON, NAME, RATE, RUN_FOLDER


def list_experiments(args: Args) -> None:
    """t2t list"""
    from t2t import experiment

    chosen = [e for e in experiment.registered().values() if args.table in (None, e.table)]
    if args.json:
        found = [
            {"name": e.name, "reports": e.reports, "table": e.table or None, "paper": dataclasses.asdict(e.paper)}
            for e in chosen
        ]
        print(json.dumps(found, indent=1))
        return
    width = max((len(e.name) for e in chosen), default=0)
    for e in chosen:
        print(f"{e.name:<{width}}  {e.reports}")


def show(args: Args) -> None:
    """t2t show"""
    from t2t import experiment

    tree = opening.experiment(args)
    if args.json:
        print(json.dumps(experiment.to_json(tree), indent=1))
        return
    leaves = experiment.leaves(tree)
    width = max(map(len, leaves))
    for path, (value, _, comment) in leaves.items():
        print(f"{path:<{width}}  {value!s:<12}  {comment}".rstrip())
    print(f"\n{_effective_batch(tree)}")


def _effective_batch(tree: Any) -> str:
    """What a step has, however many devices there are."""
    from t2t.sharding import parts

    tokens, most = tree.batching.tokens, tree.mesh.tokens_per_device
    planned = ", ".join(f"{parts(tree.mesh, n, tokens, 1)} on {n}" for n in (1, 2, 4, 8))
    return (
        f"a step has room for {tokens:,} source and {tokens:,} target tokens, however many devices there are;\n"
        f"a device computes at most {most:,} at a time: parts of a step by number of devices: {planned}"
    )


def diff(args: Args) -> None:
    """t2t diff"""
    from t2t import experiment

    a, b = experiment.get(args.a), experiment.override(experiment.get(args.b), args.overrides)
    for path, (left, right) in experiment.differences(a, b).items():
        print(f"{path}: {left} -> {right}")


def prepare(args: Args) -> None:
    """t2t prepare"""
    from t2t.data.pipeline import TrainingBatches
    from t2t.data.prepare import Sizes, overlap
    from t2t.data.prepare import prepare as make
    from t2t.progress import say
    from t2t.run import begun_from

    tree = opening.experiment(args)
    before = begun_from(tree)
    sizes = Sizes(tree.model.vocab_size, tree.model.target_vocab_size)
    prepared = make(tree.task, sizes, say, before and before[2])
    epochs = TrainingBatches(prepared, tree.batching, tree.seed).epochs
    facts = {"folder": str(prepared.folder), "fingerprint": prepared.fingerprint, **prepared.report}
    facts |= {"too_long": epochs.left_out, "batches": len(epochs), "padding": round(epochs.padding, 4), "overlap": {}}
    for split in ("dev", "test"):
        try:
            facts["overlap"][split] = overlap(tree.task, prepared, split)
        except UserError as error:
            say(f"overlap of training with {split} is not known: {error}")
    print(json.dumps(facts, indent=1) if args.json else "\n".join(_data_report(facts, tree.batching.max_length)))


def _data_report(facts: dict[str, Any], max_length: int) -> list[str]:
    lines = [
        f"folder    {facts['folder']}",
        f"pairs     {facts['pairs']:,} read, {facts['kept']:,} kept",
        *([f"cleaned   {', '.join(f'{n:,} {what}' for what, n in facts['reading'].items())}"] * bool(facts["reading"])),
        f"dropped   {', '.join(f'{count:,} {reason}' for reason, count in facts['dropped'].items())}",
        f"too long  {facts['too_long']:,} of the kept have more than {max_length} tokens (--batching.max_length): "
        "left out of training",
    ]
    for side, n in facts["lengths"].items():
        if not n["tokens"]:  # texts without sources
            continue
        spread = ", ".join(f"{share} up to {n[share]}" for share in ("50%", "90%", "99%"))
        unknown = f"{facts['unknown'][side]:,} unknown"
        lines.append(
            f"{side}    {n['tokens']:,} tokens, {n['mean']} a sentence, {spread}, all {n['longest']}; {unknown}"
        )
    lines.append(f"batches   {facts['batches']:,} an epoch, {facts['padding']:.1%} of positions are padding")
    for split, n in facts["overlap"].items():
        found = f"{n['both']:,} pairs, {n['source']:,} sources, {n['target']:,} targets"
        found = found if facts["lengths"]["source"]["tokens"] else f"{n['both']:,}"
        lines.append(f"overlap   of {n['pairs']:,} pairs of {split} are in training as they are: {found}")
    return [*lines, *(f"input     {name} {digest}" for name, digest in facts["inputs"].items())]


def train(args: Args) -> int:
    """t2t train"""
    from t2t import knobs
    from t2t.progress import Progress, say

    folder = storage.folder(args.run or f"runs/{args.name}")
    tree = opening.experiment(args, folder)
    from_step = None if args.from_step is None else knobs.read(args.from_step, knobs.Count, "from-step")
    say(
        f"{tree.name}: {tree.train_steps:,} steps in {folder}. First JAX is loaded and the training step compiled, "
        "about half a minute on two CPU cores; seconds if it was compiled here before"
    )
    from t2t import compilation, distributed, memory
    from t2t import train as training

    compilation.keep_compiled()
    memory.one_heap()
    if args.distributed:
        distributed.join()
    if not distributed.first():  # the others are heard of when something goes wrong
        say = _nothing
    config = training.TrainingConfig(from_step, args.auto_accumulate)
    try:
        with distributed.lost_others(folder), Progress(tree.train_steps) as progress:
            show = progress.show if distributed.first() else _nothing
            run = training.train(tree, folder, say, show, config)
            if tree.final_evaluation != "none":
                _final_evaluation(args, run, tree, say)
    except training.Stopped as stopped:
        say(f"t2t: {stopped}")
        return 75
    return 0


def _nothing(*_: object) -> None:
    """Says and shows nothing."""


def _final_evaluation(args: Args, run: Any, tree: Any, say: Any) -> None:
    """Scores the average of the last checkpoints and prints what came of the run."""
    from t2t import checkpoint, distributed, evaluate
    from t2t.data.vocabulary import Vocabularies

    average = min(tree.average, len(checkpoint.steps(run, tree)))
    if average < tree.average:
        say(
            f"{run.folder} has {average} checkpoint(s): the mean of these is evaluated, not of --average {tree.average}"
        )
    params, steps = checkpoint.load_params(run, tree, average, opening.mesh(args, tree))
    vocabulary = Vocabularies.load(run.vocabulary)
    found, translations = evaluate.evaluate(run, tree, vocabulary, params, steps, tree.final_evaluation, say)
    if not distributed.first():
        return
    printing.evaluation(found)
    for source, hypothesis, reference in translations[:: max(1, len(translations) // 5)][:5]:
        print(f"\nsource        {source}\noutput        {hypothesis}\nreference     {reference}")
    print(f"\nrun           {run.folder} (experiment.json, metrics.jsonl, tensorboard, checkpoints, evaluations)")
    print(f"try next      {_example(tree)} {run.folder} --average {average}")
    print(f"              t2t report {run.folder}")
    print(f"              t2t train {tree.name} --model.{_wider(tree.model)} --run {run.folder}-wide")
    print(f"              t2t show {tree.name}")


def _example(tree: Any) -> str:
    """A command that shows what a run has learnt, up to the run's folder."""
    if not tree.task.has_sources:
        return 't2t sample --prompt "The"'
    if tree.task.linearisation:
        return 'echo "Trees grow ." | t2t parse'
    return 'echo "Where is the station?" | t2t translate'


def _wider(model: Any) -> str:
    """A knob of an architecture to turn first, and twice its value."""
    name = "d_ff" if hasattr(model, "d_ff") else "d_model"
    return f"{name} {2 * getattr(model, name)}"


def cost(args: Args) -> None:
    """t2t cost"""
    from t2t import cost, knobs
    from t2t.progress import say

    rate, watts = (
        None if given is None else knobs.read(given, knobs.Positive, name)
        for name, given in (("rate", args.rate), ("watts", args.watts))
    )
    tree = opening.experiment(args)
    found = cost.cost(tree, rate, watts)
    if args.compile:
        say("compiling the training step")
        found |= cost.compiled(tree)
    print(json.dumps(found, indent=1) if args.json else cost.table(found))


def bench(args: Args) -> None:
    """t2t bench"""
    from t2t import bench, compilation, knobs, memory
    from t2t.progress import say

    if args.what == "table1":
        _table1(args)
        return
    if given := [name for name in ("lengths", "widths", "out") if getattr(args, name)]:
        raise UserError(f"--{given[0]} is for `t2t bench table1`, not for {args.what}")
    if args.name is None:
        raise UserError(f"t2t bench {args.what} needs the name of an experiment; `t2t list` has them")
    if args.run and args.what != "decode":
        raise UserError(f"--run gives the weights of `t2t bench decode`; {args.what} needs none")
    tree, number = opening.experiment(args), knobs.read(args.number or "50", knobs.Count, "number")
    compilation.keep_compiled()
    memory.one_heap()
    if args.what == "decode":
        mesh = opening.mesh(args, tree)
        params, vocabulary, weights = _weights(tree, args.run, mesh, say)
        found = {**bench.decoding(tree, params, vocabulary, number, mesh, say), "weights": weights}
    else:
        found = {"train": bench.train, "input": bench.read}[args.what](tree, number, say)
    print(json.dumps(found, indent=1) if args.json else bench.table(found))


def _table1(args: Args) -> None:
    """Layers, of no experiment."""
    from t2t import memory
    from t2t.progress import say
    from t2t.report import table1

    given = {"NAME": args.name, "--run": args.run, "--number": args.number}
    if wrong := [*(name for name, value in given.items() if value), *(f"--{knob}" for knob in args.overrides)]:
        raise UserError(f"t2t bench table1 measures layers, of no experiment: {wrong[0]} has no meaning there")
    if args.out and Path(args.out).suffix != ".svg":
        raise UserError(f"--out {args.out}: a picture is an .svg file")
    lengths = table1.sizes(args.lengths or table1.LENGTHS, "lengths")
    widths = table1.sizes(args.widths or table1.WIDTHS, "widths")
    memory.one_heap()
    found = table1.measure(lengths, widths, say)
    if args.out:
        storage.write(Path(args.out), table1.svg(found))
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else table1.text(found))


def _weights(tree: Any, folder: str | None, mesh: Any, say: Any) -> tuple[Any, Any, str]:
    """Those of a run, or random ones, over the mesh or on one device; the vocabulary; and in words which they are."""
    from t2t import checkpoint, experiment, run, train
    from t2t.arguments import of_a_run
    from t2t.data.prepare import Sizes, prepare
    from t2t.sharding import MeshConfig, make_mesh

    if folder is None:
        sizes = Sizes(tree.model.vocab_size, tree.model.target_vocab_size)
        params = train.new_state(tree, mesh or make_mesh(MeshConfig(data=1))).params
        return params, prepare(tree.task, sizes, say).vocabulary, "random: every output goes on to its limit"
    found, kept, vocabulary = run.load(storage.folder(folder))
    other = [path for path in experiment.differences(kept, tree) if path.startswith("model.") and not of_a_run(path)]
    if other:
        raise UserError(f"--run {folder}: its model is not that of {tree.name}; `t2t show` says what differs")
    params, steps = checkpoint.load_params(found, kept, mesh=mesh)
    return params, vocabulary, f"step {steps[-1]:,} of {folder}"


def launch(args: Args) -> int:
    """t2t launch"""
    from t2t import knobs, launch
    from t2t.progress import say

    if args.on not in launch.KINDS:
        raise unknown("kind of job (--on)", args.on, launch.KINDS)
    kind = launch.KINDS[args.on]
    rate = None if args.rate is None else knobs.read(args.rate, knobs.Positive, "rate")
    text = launch.script(opening.experiment(args), args.overrides, kind, launch.Job(args.devices, args.run, rate))
    if args.dry_run:
        print(text, end="")
        return 0
    launch.check_submit(args.on, kind)
    say(text)
    return launch.submit(kind, text)


# ------------------------------------------------------------------------------ The table

VERBS = (
    Verb(
        "list",
        "name the experiments and the numbers of the paper they report",
        list_experiments,
        (Option("--table", {"type": int, "choices": [2, 3, 4], "help": "only those of this table of the paper"}), JSON),
    ),
    Verb("show", "print everything an experiment consists of", show, (NAME, JSON), "experiment"),
    Verb(
        "diff",
        "print the knobs in which two experiments differ; knobs given are the second's",
        diff,
        (Option("a", {"metavar": "NAME"}), Option("b", {"metavar": "NAME"})),
        "experiment",
    ),
    Verb(
        "prepare",
        "make the vocabulary and the tokenised training pairs, once, and report on the data",
        prepare,
        (NAME, JSON),
        "experiment",
    ),
    Verb(
        "train",
        "train an experiment and score it; the same command again goes on where it stopped",
        train,
        (
            NAME,
            RUN_FOLDER,
            Option(
                "--from-step",
                {"metavar": "N", "help": "go on from checkpoint N; later ones are set aside, not lost"},
            ),
            Option(
                "--auto-accumulate",
                {"action": "store_true", "help": "compute batches in as many parts as a device's memory asks for"},
            ),
            Option(
                "--distributed",
                {"action": "store_true", "help": "join the processes of this run that the cluster started"},
            ),
        ),
        "experiment",
    ),
    Verb(
        "cost",
        "parameters, FLOPs, memory and hours of an experiment, before anything runs",
        cost,
        (
            NAME,
            JSON,
            RATE,
            Option("--watts", {"metavar": "W", "help": "what one device draws at that rate; for the energy"}),
            Option(
                "--compile", {"action": "store_true", "help": "compile the training step too, for XLA's own figures"}
            ),
        ),
        "experiment",
    ),
    Verb(
        "bench",
        "how fast an experiment trains, decodes or reads its batches on this machine; or Table 1, measured",
        bench,
        (
            Option("what", {"choices": ["train", "decode", "input", "table1"], "help": "what is measured"}),
            Option("name", {**NAME.how, "nargs": "?", "help": "an experiment; none for table1, which is about layers"}),
            Option("--number", {"metavar": "N", "help": "steps, batches or sentences; default 50"}),
            Option("--run", {"metavar": "RUN", "help": "decode: with the weights of this run; else random ones"}),
            Option("--lengths", {"metavar": "N,N", "help": "table1: of sequences; default 128,256,512,1024,2048,4096"}),
            Option("--widths", {"metavar": "D,D", "help": "table1: of vectors; default 64,128,256,512,1024"}),
            Option("--out", {"metavar": "FILE.svg", "help": "table1: a picture of time and memory"}),
            JSON,
        ),
        "experiment",
    ),
    Verb(
        "launch",
        "submit `t2t train NAME` as a job, or print its script: stopped, it goes on from its last checkpoint",
        launch,
        (
            NAME,
            Option(
                "--on",
                {
                    "required": True,
                    "metavar": "KIND",
                    "help": "local, slurm, tpu-vm, gke, xpk, skypilot or docker",
                },
            ),
            Option(
                "--devices",
                {
                    "metavar": "D",
                    "help": "GPUs, such as 8 (2x8 on two SLURM nodes; H100:8 of SkyPilot), or a TPU, as v5litepod-16",
                },
            ),
            RUN_FOLDER,
            RATE,
            Option("--dry-run", {"action": "store_true", "help": "print the script instead"}),
        ),
        "experiment",
    ),
)
