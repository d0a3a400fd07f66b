"""Words of a command line to a verb, its options and knobs; complaints of one line that name the nearest match."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from t2t.errors import UserError, unknown

OF_A_RUN = ("decoding.", "task.", "mesh.")  # beginnings of knobs that can still change when a run is trained
OF_TRAINING = ("task.vocabulary", "task.cleaning")  # and of such among them that cannot
IDENTITY = {"name", "reports", "table", "paper", "base"}  # fields of an experiment that are no knobs


class Option(NamedTuple):
    """An argument in argparse's own words: ("--json", {"action": "store_true", "help": ...})."""

    name: str
    how: Mapping[str, Any]


class Verb(NamedTuple):
    """One thing that t2t does.

    `knobs`: whose fields it takes as --model.d_ff 1024, an experiment's or a run's; `without`: beginnings of such as it
    refuses.
    """

    name: str
    about: str
    action: Callable[[argparse.Namespace], int | None]
    options: tuple[Option, ...] = ()
    knobs: Literal["", "experiment", "run"] = ""
    without: tuple[str, ...] = ()


class Parser(argparse.ArgumentParser):
    """argparse that raises what it would print with its usage."""

    def error(self, message: str) -> NoReturn:
        """Always raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def parse(verbs: Sequence[Verb], argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with the verb's `action` and the knobs given as `overrides`, path to text.

    Raises:
        UserError: no such verb or option, or a word too few or too many.
        SystemExit: help was asked for and printed.
    """
    named = {verb.name: verb for verb in verbs}
    if argv and not argv[0].startswith("-") and argv[0] not in named:
        raise unknown("verb", argv[0], named)
    verb = named.get(argv[0]) if argv else None
    if verb and verb.knobs and {"-h", "--help"} & set(argv):
        print(build_parser([verb])[1][verb.name].format_help())
        print(_knob_help(verb, argv[1:]))
        raise SystemExit(0)
    words, overrides = _take_knobs(verb, argv) if verb else (list(argv) or ["--help"], {})
    args = build_parser(verbs)[0].parse_args(words)
    args.overrides = overrides
    return args


def _take_knobs(verb: Verb, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits the words into those of declared options and positions, and the knobs."""
    known = [o.name for o in verb.options if o.name.startswith("--")] + ["--help"]
    words, overrides, rest = [], {}, iter(argv)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in known:
            words.append(word)
            continue
        if not verb.knobs:
            raise unknown("option", flag, known)
        if not equals and (value := next(rest, None)) is None:
            raise UserError(f"{flag} needs a value")
        overrides[flag[2:]] = value
    return words, overrides


def of_a_run(knob: str) -> bool:
    """Whether it can still change when a run is trained: how products are computed is no part of what was learned."""
    told_anew = knob.startswith(OF_A_RUN) and not knob.startswith(OF_TRAINING)
    return told_anew or knob in ("model.attention", "model.dtype")


def _takes(verb: Verb, knob: str) -> bool:
    if knob.split(".")[0] in IDENTITY or knob.startswith(verb.without):
        return False
    return verb.knobs == "experiment" or of_a_run(knob)


def _knob_help(verb: Verb, words: Sequence[str]) -> str:
    """Each knob of the verb with type, value and comment."""
    from t2t import experiment, knobs

    tree, whose = _whose_knobs(verb, words)
    lines = [f"knobs{whose}:"]
    for path, (value, declared, comment) in experiment.leaves(tree).items():
        if _takes(verb, path):
            lines += [f"  --{path} {value}", f"        {comment} [{knobs.describe(declared)}]"]
    return "\n".join(lines)


def _whose_knobs(verb: Verb, words: Sequence[str]) -> tuple[Any, str]:
    """The experiment or run that is named, or else the defaults, the paper's; and how the help says so."""
    from t2t import experiment, run, storage
    from t2t.sharding import MeshConfig

    base = experiment.Experiment("", "", experiment.get("quickstart").task)
    whose = ", with the values of the paper's base where it has one"
    if verb.knobs == "experiment":
        named = next((word for word in words if word in experiment.registered()), None)
        return (experiment.get(named), f" of {named}") if named else (base, whose)
    for word in words:
        with contextlib.suppress(UserError):  # a word that names no run
            kept = run.load(storage.folder(word))[1]
            return dataclasses.replace(kept, mesh=MeshConfig(data=1)), f" of {word}"
    whose += f"; `t2t {verb.name} RUN --help` has those of a run"
    return dataclasses.replace(base, mesh=MeshConfig(data=1)), whose


def build_parser(
    verbs: Sequence[Verb], names: Sequence[str] | None = None, knobs: Sequence[str] = ()
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each verb; for shell completion, with `names` of experiments and `knobs`."""
    parser = Parser(prog="t2t", description="The Transformer and its experiments, by name.", allow_abbrev=False)
    parsers = {}
    places = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in verbs:
        made = places.add_parser(verb.name, help=verb.about, description=verb.about, allow_abbrev=False)
        made.set_defaults(action=verb.action)
        for option in verb.options:
            choices: dict[str, Any] = {"choices": names} if names and option.how.get("metavar") == "NAME" else {}
            made.add_argument(option.name, **option.how, **choices)
        if verb.knobs:
            made.usage = f"{made.format_usage().removeprefix('usage: ').strip()} [--KNOB VALUE ...]"
            for knob in knobs:
                if _takes(verb, knob):
                    made.add_argument(f"--{knob}")
        parsers[verb.name] = made
    return parser, parsers
