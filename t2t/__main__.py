"""The command line: all verbs, and what becomes of their errors.

Results go to standard output, everything else to standard error.

Exit codes: 0 done; 2 something the user can mend, said in one line; 75 stopped by a signal after saving, because
another process of the run was lost, or because a bucket cannot be reached for now: the same command goes on; 1 our
fault.
"""

import contextlib
import io
import os
import sys
from argparse import Namespace as Args
from collections.abc import Sequence

from t2t.arguments import Option, Verb, build_parser, parse
from t2t.errors import Passing, UserError, out_of_memory
from t2t.verbs import experiments, files, reports, runs, weights


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            # Whatever the locale: text here has Greek letters, and other people's. A file's name may be no text at all.
            stream.reconfigure(encoding="utf-8", errors=errors)
    try:
        args = parse(VERBS, sys.argv[1:] if argv is None else argv)
        with contextlib.ExitStack() as args.stack:  # what lasts as long as the verb
            code = args.action(args) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"t2t: {error}", file=sys.stderr)
        return 75 if isinstance(error, Passing) else 2
    except BrokenPipeError:  # whoever read our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not (said := out_of_memory(error)):
            raise
        print(f"t2t: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("t2t: interrupted", file=sys.stderr)
        return 130


def completion(args: Args) -> None:
    """t2t completion"""
    import shtab

    from t2t import experiment

    knobs = list(experiment.leaves(experiment.get("quickstart")))
    parser, _ = build_parser(VERBS, list(experiment.registered()), knobs)
    print(shtab.complete(parser, shell=args.shell))


VERBS = (  # in the order that --help shows
    *experiments.VERBS,
    *runs.VERBS,
    *reports.VERBS,
    *files.VERBS,
    *weights.VERBS,
    Verb(
        "completion",
        "print a completion script for your shell",
        completion,
        (Option("shell", {"choices": ["bash", "zsh", "tcsh"]}),),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
