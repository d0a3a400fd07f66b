"""The command line: verbs, nothing else. Results go to standard output, everything else to standard error.

Exit codes: 0 done; 2 something the user can mend, said in one line; 75 stopped by a signal after saving, or because
another process of the run was lost: the same command goes on; 1 our fault.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from argparse import Namespace as Args
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from t2t import storage
from t2t.arguments import IDENTITY, Option, Verb, build_parser, of_a_run, parse
from t2t.errors import UserError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # whatever the locale: text here has Greek letters, and other people's
    try:
        args = parse(VERBS, sys.argv[1:] if argv is None else argv)
        with contextlib.ExitStack() as args.stack:  # what lasts as long as the verb
            code = args.action(args) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"t2t: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("t2t: interrupted", file=sys.stderr)
        return 130


def _experiment(args: Args) -> Any:
    from t2t import experiment

    if fixed := [path for path in args.overrides if path.split(".")[0] in IDENTITY]:
        raise UserError(f"--{fixed[0]} is what an experiment is known by, not a knob")
    tree = experiment.get(args.name)
    if where := args.overrides.get("init_from"):
        from t2t import run

        tree = dataclasses.replace(tree, model=run.load(storage.folder(where))[1].model)
    return experiment.override(tree, args.overrides)


def _loaded(args: Args) -> tuple[Any, Any, Any, Any, list[int]]:
    """A run with the user's knobs on top: (run, experiment, vocabulary, weights, the steps they are of)."""
    from t2t import checkpoint, compilation, knobs, run

    average = knobs.read(args.average, knobs.Count, "average")
    found, tree, vocabulary = _opened(args)
    compilation.keep_compiled()
    params, steps = checkpoint.load_params(found.checkpoints, tree, average, _mesh(args, tree))
    return found, tree, vocabulary, params, run.averaged(found) or steps


def _opened(args: Args) -> tuple[Any, Any, Any]:
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


def _mesh(args: Args, tree: Any) -> Any:
    """The experiment's mesh, set until the verb ends; None where it is a single device."""
    from t2t import checkpoint
    from t2t.sharding import check_layout, make_mesh, on

    mesh = make_mesh(tree.mesh)
    if mesh.size == 1:
        return None
    check_layout(mesh, checkpoint.abstract_params(tree))
    args.stack.enter_context(on(mesh))
    return mesh


# ------------------------------------------------------------------------------ Verbs on experiments


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

    tree = _experiment(args)
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

    tree = _experiment(args)
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

    tree = _experiment(args)
    folder = storage.folder(args.run or f"runs/{tree.name}")
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

    average = min(tree.average, len(checkpoint.steps(run.checkpoints, tree)))
    if average < tree.average:
        say(
            f"{run.folder} has {average} checkpoint(s): the mean of these is evaluated, not of --average {tree.average}"
        )
    params, steps = checkpoint.load_params(run.checkpoints, tree, average, _mesh(args, tree))
    vocabulary = Vocabularies.load(run.vocabulary)
    found, translations = evaluate.evaluate(run, tree, vocabulary, params, steps, tree.final_evaluation, say)
    if not distributed.first():
        return
    _print_evaluation(found)
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
    """A knob of an architecture to turn first, such as "d_ff 1024"."""
    return "d_ff 1024" if hasattr(model, "d_ff") else f"d_model {2 * model.d_model}"


def _how(found: dict[str, Any]) -> str:
    from t2t import checkpoint

    weights, how = checkpoint.described(found["checkpoints"]), found["decoding"]
    return f"{weights}; beam {how['beam']}, alpha {how['alpha']:g}" if how else weights


def _print_evaluation(found: dict[str, Any]) -> None:
    print(f"{found['split']} split, weights: {_how(found)}")
    print(f"perplexity    {found['perplexity']:.2f} per token, unsmoothed")
    _print_scores(found["scores"])
    if repaired := found["outputs"].get("repaired"):
        print(f"repaired      {repaired:,} outputs were no trees over their sentences' words")
    print(f"outputs       {found['folder']}")


def _print_scores(scores: dict[str, dict[str, Any]]) -> None:
    for name, found in scores.items():
        interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
        print(f"{name:<13} {found['score']:.2f} {interval} ({found['signature']})")


def cost(args: Args) -> None:
    """t2t cost"""
    from t2t import cost, knobs
    from t2t.progress import say

    rate = None if args.rate is None else knobs.read(args.rate, knobs.Positive, "rate")
    tree = _experiment(args)
    found = cost.cost(tree, rate)
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
    tree, number = _experiment(args), knobs.read(args.number or "50", knobs.Count, "number")
    compilation.keep_compiled()
    memory.one_heap()
    if args.what == "decode":
        params, vocabulary, weights = _weights(tree, args.run, say)
        found = {**bench.decoding(tree, params, vocabulary, number, say), "weights": weights}
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


def _weights(tree: Any, folder: str | None, say: Any) -> tuple[Any, Any, str]:
    """Those of a run, or random ones; with the vocabulary, and in words which they are."""
    from t2t import checkpoint, run, train
    from t2t.data.prepare import Sizes, prepare
    from t2t.sharding import MeshConfig, make_mesh

    if folder is None:
        sizes = Sizes(tree.model.vocab_size, tree.model.target_vocab_size)
        params = train.new_state(tree, make_mesh(MeshConfig(data=1))).params
        return params, prepare(tree.task, sizes, say).vocabulary, "random: every output goes on to its limit"
    found, kept, vocabulary = run.load(storage.folder(folder))
    if kept.model != tree.model:
        raise UserError(f"--run {folder}: its model is not that of {tree.name}; `t2t show` says what differs")
    params, steps = checkpoint.load_params(found.checkpoints, kept)
    return params, vocabulary, f"step {steps[-1]:,} of {folder}"


def launch(args: Args) -> int:
    """t2t launch"""
    from t2t import knobs, launch
    from t2t.progress import say

    if args.on not in launch.KINDS:
        raise unknown("kind of job (--on)", args.on, launch.KINDS)
    kind = launch.KINDS[args.on]
    rate = None if args.rate is None else knobs.read(args.rate, knobs.Positive, "rate")
    text = launch.script(_experiment(args), args.overrides, kind, launch.Job(args.devices, args.run, rate))
    if args.dry_run:
        print(text, end="")
        return 0
    launch.check_submit(args.on, kind)
    say(text)
    return launch.submit(kind, text)


# ------------------------------------------------------------------------------ Verbs on runs


def evaluate(args: Args) -> None:
    """t2t evaluate"""
    from t2t import evaluate
    from t2t.progress import say

    run, tree, vocabulary, params, steps = _loaded(args)
    found, _ = evaluate.evaluate(run, tree, vocabulary, params, steps, args.split, say)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print_evaluation(found)


def translate(args: Args) -> int:
    """t2t translate"""
    from t2t import lines, translate
    from t2t.decode import SamplingConfig
    from t2t.experiment import override
    from t2t.progress import say

    given = _draws(args)
    if given and not args.sample:
        raise UserError(f"--{next(iter(given))} goes with --sample")
    if args.engine and (args.sample or args.average != "1" or args.others):
        what = "--sample" if args.sample else "--average" if args.average != "1" else "a second run"
        raise UserError(f"{what} does not go with --with, which searches with other weights")
    if args.sample and (args.beam or args.alpha):
        raise UserError("--beam and --alpha search for the best output; with --sample it is drawn")
    stdin = _stdin()
    sampling = override(SamplingConfig(), given) if args.sample else None
    wanted = override(translate.TranslationConfig(sampling=sampling), {"n_best": args.n_best})
    wanted = dataclasses.replace(wanted, scores=args.scores, too_long=args.too_long)
    if not args.engine:
        tree, vocabulary, params = _together(args)
        work = translate.TranslateLines(tree, vocabulary, wanted, say)
        return lines.stream(tree, params, work, sampling, stdin, sys.stdout, say)
    from t2t.interop import ctranslate2

    _, tree, vocabulary = _opened(args)
    work = translate.TranslateLines(tree, vocabulary, wanted, say)
    engine = ctranslate2.Engine(_folder_of(args.engine), vocabulary, tree.decoding)
    return lines.stream(tree, None, work, None, stdin, sys.stdout, say, engine)


def _together(args: Args) -> tuple[Any, Any, Any]:
    """The runs as one, with the first's knobs: (experiment, vocabulary, weights)."""
    from t2t.models.ensemble import EnsembleConfig

    _, tree, vocabulary, params, _ = _loaded(args)
    if not args.others:
        return tree, vocabulary, params
    models, weights = [tree.model], [params]
    for folder in args.others:
        _, other, its_own, params, _ = _loaded(Args(**{**vars(args), "run": folder}))
        if its_own.fingerprint != vocabulary.fingerprint:
            raise UserError(f"{folder} has another vocabulary than {args.run}: only runs of one are decoded together")
        models.append(other.model)
        weights.append(params)
    return dataclasses.replace(tree, model=EnsembleConfig(tuple(models))), vocabulary, tuple(weights)


def _folder_of(words: Sequence[str]) -> Path:
    """That of --with ENGINE DIR."""
    if words[0] != "ctranslate2":
        raise unknown("engine (--with)", words[0], ["ctranslate2"])
    return Path(words[1])


def _draws(args: Args) -> dict[str, str]:
    """The options of drawing that are given."""
    options = {name: getattr(args, name) for name in ("temperature", "top_k", "nucleus", "seed")}
    return {name: value for name, value in options.items() if value is not None}


def sample(args: Args) -> None:
    """t2t sample"""
    from t2t import sample
    from t2t.decode import SamplingConfig
    from t2t.experiment import override
    from t2t.progress import say

    sampling = override(SamplingConfig(), _draws(args))
    wanted = override(sample.TextConfig(prompt=args.prompt), {"samples": args.samples})
    _, tree, vocabulary, params, _ = _loaded(args)
    for text in sample.texts(tree, params, vocabulary, wanted, sampling, say):
        print(text)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise UserError("standard input is closed: lines are read from it")
    return sys.stdin.buffer


def parse_lines(args: Args) -> int:
    """t2t parse"""
    from t2t import lines, parse
    from t2t.progress import say

    stdin, wanted = _stdin(), parse.ParsingConfig(args.raw, args.pretty, args.svg or "")
    _, tree, vocabulary, params, _ = _loaded(args)
    work = parse.ParseLines(tree, vocabulary, wanted, say)
    code = lines.stream(tree, params, work, None, stdin, sys.stdout, say)
    if work.repaired:
        say(f"{work.repaired:,} outputs were no trees over their sentences' words, and were repaired")
    return code


def score(args: Args) -> None:
    """t2t score"""
    from t2t import evaluate
    from t2t.data.corpora import parallel

    pairs = list(parallel(Path(args.source), Path(args.target)))
    _, tree, vocabulary, params, _ = _loaded(args)
    values = evaluate.score_pairs(tree.model, params, vocabulary, tree.task.given(pairs))
    if args.json:
        rows = [{**pair._asdict(), "log_probability": value} for pair, value in zip(pairs, values, strict=True)]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for value in values:
        print(f"{value:.6f}")


def compare(args: Args) -> None:
    """t2t compare"""
    from t2t.metrics import bleu
    from t2t.progress import say
    from t2t.run import paired

    (first, task), (second, other) = (_newest_evaluation(storage.folder(run), args.split) for run in (args.a, args.b))
    if (task.source, task.target) != (other.source, other.target):
        ours, others = f"{task.source} into {task.target}", f"{other.source} into {other.target}"
        raise UserError(f"{args.a} translates {ours}, but {args.b} {others}")
    mine, theirs, references = paired(first, second)
    say(f"comparing {len(references):,} {args.split} pairs: half a minute for 3,000")
    found = bleu.compare(mine, theirs, references, task.target, task.source)
    if args.json:
        scores = {name: each._asdict() for name, each in found.items()}
        folders = {"first": str(first.folder), "second": str(second.folder)}
        print(json.dumps({"split": args.split, **folders, "scores": scores}, indent=1))
        return
    print(f"{args.split} split; the second less the first, p by paired approximate randomisation")
    for name, evaluation in (("first", first), ("second", second)):
        print(f"{name:<13} {evaluation.folder}, weights: {_how(evaluation.summary)}")
    for name, each in found.items():
        values = f"{each.second:.2f} - {each.first:.2f} = {each.difference:+.2f}"
        print(f"{name:<13} {values}, p {each.p:.4f} ({each.signature})")


def _newest_evaluation(folder: Path, split: str) -> tuple[Any, Any]:
    """The newest evaluation of a split in a run folder, and the task of the run, which is translating."""
    from t2t import run as runs
    from t2t.data.translation import Translation
    from t2t.progress import say

    run, tree, _ = runs.load(folder)
    if not isinstance(tree.task, Translation):
        raise UserError(f"{folder} is no run of translating: its scores are others")
    found = runs.evaluations(run, split)
    if not found:
        raise UserError(f"{folder} has no evaluation of the {split} split: t2t evaluate {folder} --split {split}")
    if len(found) > 1:
        say(f"{folder} has {len(found)} evaluations of the {split} split; the newest is {found[-1].folder.name}")
    return found[-1], tree.task


def report(args: Args) -> None:
    """t2t report"""
    from t2t.progress import say
    from t2t.report import page, tables

    folders = [storage.folder(each) for each in args.what]
    if args.what[0] in (*tables.TABLES, "baselines") or not any(map(_is_path, folders)):
        _table(args, say)
        return
    for option, given in {"--runs": args.runs, "--markdown": args.markdown, "--json": args.json}.items():
        if given:
            raise UserError(f"{option} is for a table of the paper; the page of a run is one file of HTML")
    average = None if args.average is None else _number(args.average, "average")
    print(page.write(folders, storage.folder(args.out) if args.out else None, average, say))


def _is_path(folder: Path) -> bool:
    """Whether a word means a run folder, rather than a table that is misspelt."""
    return storage.remote(folder) or len(folder.parts) > 1 or folder.exists()


def _table(args: Args, say: Any) -> None:
    """A table of the paper, or of what it replaced."""
    from t2t.report import baselines, tables

    if len(args.what) > 1:
        raise UserError(f"{args.what[0]} is reported alone, not with {args.what[1]}")
    for option, given in {"--out": args.out, "--average": args.average}.items():
        if given:
            raise UserError(f"{option} is for the page of a run; a table goes to standard output")
    if args.markdown and args.json:
        raise UserError("--markdown and --json are two forms of one report: give one of them")
    folder, replaced = storage.folder(args.runs) if args.runs else None, args.what[0] == "baselines"
    found = baselines.rows(folder, say) if replaced else tables.rows(args.what[0], folder, say)
    form: Any = baselines if replaced else tables
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(form.markdown(found) if args.markdown else form.text(found))


def _number(text: str | None, name: str) -> int | None:
    """The whole number from 1 on that an option spells, if it was given."""
    from t2t import knobs

    return None if text is None else knobs.read(text, knobs.Count, name)


def attention(args: Args) -> None:
    """t2t attention"""
    from t2t import checkpoint
    from t2t.report import attention, pictures

    kind = Path(args.out).suffix
    if kind not in (".html", ".svg", ".png"):
        raise UserError(f"--out {args.out}: a picture is an .html, .svg or .png file")
    if kind == ".html" and args.lines:
        raise UserError("--lines is for a picture; a page of .html has lines and heat map")
    if kind == ".png":
        pictures.check_png()
    layer, head = _number(args.layer, "layer"), _number(args.head, "head")
    _, tree, vocabulary, params, steps = _loaded(args)
    attention.check(attention.sizes(tree, params), args.which, layer, head)
    found = attention.of_text(tree, vocabulary, params, args.text, args.to)
    if kind == ".html":
        picture: str | bytes = found.html(args.which, layer, head, checkpoint.described(steps))
    else:
        draw = found.svg if kind == ".svg" else found.png
        picture = draw(args.which, layer, head, "lines" if args.lines else "grid")
    storage.write(Path(args.out), picture)
    print(args.out)


def average(args: Args) -> None:
    """t2t average"""
    from t2t import checkpoint
    from t2t import run as runs

    if args.ema:
        run, tree, _ = _opened(args)
        params, steps = checkpoint.load_moving_mean(run.checkpoints, tree)
    else:
        run, _, _, params, steps = _loaded(args)
    folder = storage.folder(args.to or f"{run.folder}-{'ema' if args.ema else f'average{len(steps)}'}")
    with runs.derive(run, folder, steps) as new:
        checkpoint.save_params(new.checkpoints, steps[-1], params)
    print(folder)


def export(args: Args) -> None:
    """t2t export"""
    from t2t.interop import ctranslate2, hugging_face

    if args.quantization and args.to != "ctranslate2":
        raise UserError("--quantization goes with --to ctranslate2")
    _, tree, vocabulary, params, _ = _loaded(args)
    folder = Path(args.folder)
    if args.to == "ctranslate2":
        ctranslate2.write(tree.model, params, vocabulary, folder, args.quantization or "float32")
    else:
        hugging_face.write(tree, params, vocabulary, folder)
    print(folder)


def import_folder(args: Args) -> None:
    """t2t import"""
    import jax

    from t2t import checkpoint
    from t2t import run as runs
    from t2t.data.corpora import Text
    from t2t.data.translation import Translation
    from t2t.experiment import Experiment
    from t2t.interop import hugging_face

    where, folder = Path(args.folder), storage.folder(args.run)
    found = hugging_face.read(where)
    source, target = args.source or found.languages[0], args.target or found.languages[1]
    if not source or not target:
        raise UserError(f"{where} does not say its languages: give --source and --target, as en and de")
    tree = Experiment(
        name="imported",
        reports="nothing in the paper: weights that were trained elsewhere",
        task=Translation(Text(), source, target),
        model=found.model,
        decoding=found.decoding,
    )
    with runs.imported(folder, tree, found.vocabulary, where, jax.devices()[0].device_kind) as new:
        checkpoint.save_params(new.checkpoints, 0, jax.tree.map(jax.numpy.asarray, found.params))
    print(folder)


def completion(args: Args) -> None:
    """t2t completion"""
    import shtab

    from t2t import experiment

    knobs = list(experiment.leaves(experiment.get("quickstart")))
    parser, _ = build_parser(VERBS, list(experiment.registered()), knobs)
    print(shtab.complete(parser, shell=args.shell))


# ------------------------------------------------------------------------------ Verbs on files


def bleu(args: Args) -> None:
    """t2t bleu"""
    from t2t.data.corpora import parallel
    from t2t.metrics import bleu

    bleu.check_languages(args.lang, args.source_lang)
    references, hypotheses = zip(*parallel(Path(args.reference), Path(args.hypothesis)), strict=True)
    scores = bleu.scores(hypotheses, references, args.lang, args.source_lang)
    found = {name: score._asdict() for name, score in scores.items()}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print_scores(found)


def brackets(args: Args) -> None:
    """t2t brackets"""
    from t2t.data.corpora import parallel
    from t2t.metrics import brackets
    from t2t.progress import say

    gold, test = zip(*parallel(Path(args.gold), Path(args.test)), strict=True)
    found = brackets.statistics(_trees(args.test, test), _trees(args.gold, gold))
    if errors := found.errors():
        named = ", ".join(map(str, errors[:10])) + (f" and {len(errors) - 10:,} more" if errors[10:] else "")
        say(f"errors, which no score counts: {args.test} has other words than {args.gold} in line {named}")
    sections = found, found.short()
    if args.json:
        every, short = map(_bracket_facts, sections)
        print(json.dumps({**every, f"length_{brackets.SHORT}": short}, indent=1))
    else:
        _print_brackets(sections)


def _trees(path: str, lines: Sequence[str]) -> Any:
    from t2t.metrics import brackets
    from t2t.trees import BrokenTree

    try:
        return brackets.read(lines)
    except BrokenTree as error:
        raise UserError(f"{path}, line {error.line}: {error.reason}") from None


def _bracket_facts(found: Any) -> dict[str, Any]:
    total, scores = found.total(), found.scores()
    values = {name: score.score for name, score in scores.items()}
    counts = {"sentences": total.sentences, "skipped": total.skipped, "errors": total.errors}
    f1 = scores["f1"]
    return {**values, "low": f1.low, "high": f1.high, **counts, "signature": f1.signature}


def _print_brackets(sections: Sequence[Any]) -> None:
    print(f"{'':<21} {'all':>8} {'len<=40':>8}")
    totals = [section.total() for section in sections]
    for title, name in EVALB.items():
        values = [getattr(total, name) for total in totals]
        print(f"{title:<21}", *(f"{value:8.2f}" if isinstance(value, float) else f"{value:8}" for value in values))
    for f1 in (section.scores()["f1"] for section in sections):
        print(f"Bracketing FMeasure   [{f1.low:.2f}, {f1.high:.2f}] ({f1.signature})")


# ------------------------------------------------------------------------------ What there is

NAME = Option("name", {"metavar": "NAME", "help": "an experiment; `t2t list` names them"})
RUN = Option("run", {"metavar": "RUN", "help": "a run folder, such as runs/quickstart"})
RATE = Option("--rate", {"metavar": "TFLOP/S", "help": "what one device sustains; for the hours"})
RUN_FOLDER = Option("--run", {"metavar": "DIR", "help": "the run folder; default: runs/NAME"})
JSON = Option("--json", {"action": "store_true", "help": "JSON on standard output"})
LAST = {"default": "1", "metavar": "N", "help": "use the mean of the last N checkpoints; default 1"}
AVERAGE = Option("--average", LAST)
BEAM = Option("--beam", {"metavar": "K", "help": "hypotheses kept a sentence; 1 is greedy decoding"})
ALPHA = Option("--alpha", {"metavar": "A", "help": "exponent of the length penalty"})
DRAWS = (
    Option("--temperature", {"metavar": "T", "help": "of draws: below 1 sharpens; default 1"}),
    Option("--top_k", {"metavar": "N", "help": "draw among the N likeliest pieces; default 0, all"}),
    Option("--nucleus", {"metavar": "P", "help": "draw among the likeliest that hold P; default 1"}),
    Option("--seed", {"metavar": "N", "help": "another seed, other draws; default 0"}),
)
EVALB = {
    "Number of sentence": "sentences",
    "Error sentence": "errors",
    "Skip sentence": "skipped",
    "Valid sentence": "valid",
    "Bracketing Recall": "recall",
    "Bracketing Precision": "precision",
    "Bracketing FMeasure": "f1",
    "Complete match": "complete_match",
    "Average crossing": "crossing",
    "No crossing": "no_crossing",
    "2 or less crossing": "two_crossing",
    "Tagging accuracy": "tagging_accuracy",
}  # its lines of the summary, and what they are in t2t.metrics.brackets
SPLIT = Option("--split", {"choices": ["train", "dev", "test"], "default": "test", "help": "default: test"})

VERBS = (
    Verb(
        "list",
        "name the experiments and the numbers of the paper they report",
        list_experiments,
        (Option("--table", {"type": int, "metavar": "N", "help": "only those of the paper's table N"}), JSON),
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
    Verb(
        "evaluate",
        "perplexity and scores of a run on a split",
        evaluate,
        (RUN, SPLIT, AVERAGE, BEAM, ALPHA, JSON),
        "run",
    ),
    Verb(
        "translate",
        "translate lines from standard input to standard output, a line each, in order",
        translate,
        (
            RUN,
            Option("others", {"nargs": "*", "metavar": "RUN", "help": "more runs of its vocabulary, decoded with it"}),
            AVERAGE,
            BEAM,
            ALPHA,
            Option("--n_best", {"default": "1", "metavar": "N", "help": "N lines out for each line in, best first"}),
            Option("--scores", {"action": "store_true", "help": "write each output's score and a tab before it"}),
            Option(
                "--too_long",
                {
                    "choices": ["split", "cut"],
                    "default": "split",
                    "help": "a line with more tokens than --decoding.max_input: in pieces (default), or its beginning",
                },
            ),
            Option("--sample", {"action": "store_true", "help": "draw the output instead of searching for the best"}),
            *DRAWS,
            Option(
                "--with",
                {
                    "dest": "engine",
                    "nargs": 2,
                    "metavar": ("ENGINE", "DIR"),
                    "help": "search by another engine: ctranslate2, and the folder the run was exported to",
                },
            ),
        ),
        "run",
    ),
    Verb(
        "sample",
        "draw texts from a run that models text, such as one of lm_quickstart: a line each",
        sample,
        (
            RUN,
            AVERAGE,
            Option("--prompt", {"metavar": "TEXT", "help": "what each text begins with; default: nothing"}),
            Option("--samples", {"default": "1", "metavar": "N", "help": "so many texts; default 1"}),
            *DRAWS,
        ),
        "run",
    ),
    Verb(
        "parse",
        "parse lines from standard input, words between spaces, to standard output: a tree a line, in order",
        parse_lines,
        (
            RUN,
            AVERAGE,
            BEAM,
            ALPHA,
            Option(
                "--raw",
                {"action": "store_true", "help": "the lines are raw text, a sentence each: split it into words first"},
            ),
            Option("--pretty", {"action": "store_true", "help": "draw the trees, in place of a line of brackets each"}),
            Option("--svg", {"metavar": "DIR", "help": "write a picture of each tree, DIR/000001.svg for line 1"}),
        ),
        "run",
    ),
    Verb(
        "score",
        "log-probability (nats) of each line of TARGET as a translation of the same line of SOURCE",
        score,
        (RUN, Option("source", {"metavar": "SOURCE"}), Option("target", {"metavar": "TARGET"}), AVERAGE, JSON),
    ),
    Verb(
        "compare",
        "whether the newest evaluations of two runs differ by more than chance, in each score",
        compare,
        (Option("a", {"metavar": "RUN"}), Option("b", {"metavar": "RUN"}), SPLIT, JSON),
    ),
    Verb(
        "report",
        "the page of a run, or of several compared; or a table of the paper, or of what it replaced",
        report,
        (
            Option(
                "what", {"metavar": "WHAT", "nargs": "+", "help": "run folders; or table2, table3, table4 or baselines"}
            ),
            Option(
                "--out", {"metavar": "FILE.html", "help": "where the page goes; default, for one run: RUN/report.html"}
            ),
            Option(
                "--average",
                {
                    "metavar": "N",
                    "help": "of how many last checkpoints attention is; default: as the newest evaluation",
                },
            ),
            Option("--runs", {"metavar": "DIR", "help": "tables: where the run folders lie; default: runs"}),
            Option("--markdown", {"action": "store_true", "help": "tables: one of GitHub's Markdown"}),
            JSON,
        ),
    ),
    Verb(
        "attention",
        "draw which tokens look at which, over a text and its best output or one that you give",
        attention,
        (
            RUN,
            Option("--text", {"required": True, "help": "a line as it stands in the data"}),
            Option("--to", {"default": "", "help": "its translation, or its tree; default: the best output"}),
            Option(
                "--out",
                {
                    "required": True,
                    "metavar": "FILE",
                    "help": "an .html page to choose from, or an .svg or .png picture",
                },
            ),
            Option(
                "--which",
                {
                    "choices": ["encoder", "decoder", "cross"],
                    "default": "",
                    "help": "default: cross, decoder over source",
                },
            ),
            Option("--lines", {"action": "store_true", "help": "lines between tokens, in place of a heat map"}),
            Option("--layer", {"metavar": "N", "help": "the layer, from 1; default: the last"}),
            Option("--head", {"metavar": "H", "help": "one head, from 1; default: the mean of all"}),
            AVERAGE,
            BEAM,
            ALPHA,
        ),
        "run",
    ),
    Verb(
        "bleu",
        "the scores of a file of outputs against a file of references, with signatures and intervals",
        bleu,
        (
            Option("reference", {"metavar": "REF", "help": "detokenised text, a sentence a line; .gz and .xz too"}),
            Option("hypothesis", {"metavar": "HYP", "help": "the same, of what is scored"}),
            Option("--lang", {"default": "de", "metavar": "L", "help": "the language of both; default: de"}),
            Option(
                "--source_lang",
                {
                    "default": "en",
                    "metavar": "L",
                    "help": "what was translated; the paper's reading splits hyphens from en into de; default: en",
                },
            ),
            JSON,
        ),
    ),
    Verb(
        "brackets",
        "EVALB's scores (COLLINS.prm) of a file of trees against a file of gold trees, with intervals",
        brackets,
        (
            Option("gold", {"metavar": "GOLD", "help": "bracketed trees, one a line; .gz and .xz too"}),
            Option("test", {"metavar": "TEST", "help": "the same, of what is scored; a blank line is a skipped one"}),
            JSON,
        ),
    ),
    Verb(
        "average",
        "write a run folder whose weights are the mean of a run's last checkpoints, or a moving mean",
        average,
        (
            RUN,
            Option("--average", {**LAST, "default": "5", "help": "how many; default 5"}),
            Option("--ema", {"action": "store_true", "help": "the moving mean that training kept (--optimizer.ema)"}),
            Option("--to", {"metavar": "DIR", "help": "the new run folder; default: RUN-averageN"}),
        ),
    ),
    Verb(
        "export",
        "write a run's weights and vocabulary as a folder that other engines load",
        export,
        (
            RUN,
            Option("--to", {"choices": ["hugging-face", "ctranslate2"], "required": True, "help": "for which engine"}),
            Option("folder", {"metavar": "DIR", "help": "the new folder"}),
            Option(
                "--quantization",
                {
                    "choices": ["float32", "float16", "int8"],
                    "help": "with --to ctranslate2: what its weights are kept as; default: float32",
                },
            ),
            AVERAGE,
        ),
    ),
    Verb(
        "import",
        "make a run of a folder of a Marian or OPUS-MT model, to translate, score, evaluate or train further",
        import_folder,
        (
            Option("what", {"choices": ["hugging-face"], "help": "what kind of folder"}),
            Option("folder", {"metavar": "DIR", "help": "with config.json, the weights and the vocabulary"}),
            Option("--run", {"required": True, "metavar": "RUN", "help": "the new run folder"}),
            Option("--source", {"metavar": "L", "help": "language of sources, where the folder does not say: as en"}),
            Option("--target", {"metavar": "L", "help": "language of targets, likewise"}),
        ),
    ),
    Verb(
        "completion",
        "print a completion script for your shell",
        completion,
        (Option("shell", {"choices": ["bash", "zsh", "tcsh"]}),),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
