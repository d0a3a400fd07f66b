"""Verbs that take a run's weights elsewhere: to a run of their mean, to other engines, and from these."""

from argparse import Namespace as Args
from pathlib import Path

from t2t import storage
from t2t.arguments import Option, Verb
from t2t.errors import UserError
from t2t.verbs import opening
from t2t.verbs.options import AVERAGE, RUN


def average(args: Args) -> None:
    """t2t average"""
    from t2t import checkpoint
    from t2t import run as runs

    if args.ema and args.average:
        raise UserError("--average N is the mean of checkpoints, --ema that which training kept: give one of them")
    if args.ema:
        run, tree, _ = opening.opened(args)
        params, steps = checkpoint.load_moving_mean(run, tree)
    else:
        run, _, _, params, steps = opening.loaded(Args(**{**vars(args), "average": args.average or "5"}))
    folder = storage.folder(args.to or f"{run.folder}-{'ema' if args.ema else f'average{len(steps)}'}")
    with runs.derive(run, folder, steps) as new:
        checkpoint.save_params(new.checkpoints, steps[-1], params)
    print(folder)


def export(args: Args) -> None:
    """t2t export"""
    from t2t.interop import ctranslate2, hugging_face

    if args.quantization and args.to != "ctranslate2":
        raise UserError("--quantization goes with --to ctranslate2")
    _, tree, vocabulary, params, _ = opening.loaded(args)
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


# ------------------------------------------------------------------------------ The table

VERBS = (
    Verb(
        "average",
        "write a run folder whose weights are the mean of a run's last checkpoints, or a moving mean",
        average,
        (
            RUN,
            Option("--average", {"metavar": "N", "help": "how many; default 5"}),
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
)
