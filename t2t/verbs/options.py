"""Options that several verbs take."""

from t2t.arguments import Option

NAME = Option("name", {"metavar": "NAME", "help": "an experiment; `t2t list` names them"})
RUN = Option("run", {"metavar": "RUN", "help": "a run folder, such as runs/NAME"})
OTHERS = Option("others", {"nargs": "*", "metavar": "RUN", "help": "more runs of its vocabulary, decoded with it"})
RATE = Option("--rate", {"metavar": "TFLOP/S", "help": "what one device sustains; for the hours"})
RUN_FOLDER = Option("--run", {"metavar": "DIR", "help": "the run folder; default: runs/NAME"})
JSON = Option("--json", {"action": "store_true", "help": "JSON on standard output"})
AVERAGE = Option(
    "--average", {"default": "1", "metavar": "N", "help": "use the mean of the last N checkpoints; default 1"}
)
BEAM = Option("--beam", {"metavar": "K", "help": "hypotheses kept a sentence; 1 is greedy decoding"})
ALPHA = Option("--alpha", {"metavar": "A", "help": "exponent of the length penalty"})
DRAWS = (
    Option("--temperature", {"metavar": "T", "help": "of draws: below 1 sharpens; default 1"}),
    Option("--top_k", {"metavar": "N", "help": "draw among the N likeliest pieces; default 0, all"}),
    Option("--nucleus", {"metavar": "P", "help": "draw among the likeliest that hold P; default 1"}),
    Option("--seed", {"metavar": "N", "help": "another seed, other draws; default 0"}),
)
SEARCH = ("decoding.beam", "decoding.alpha", "decoding.early_stopping")  # knobs that only a search has
SPLIT = Option("--split", {"choices": ["train", "dev", "test"], "default": "test", "help": "default: test"})


def number(text: str | None, name: str) -> int | None:
    """The whole number from 1 on that an option spells, if it was given."""
    from t2t import knobs

    return None if text is None else knobs.read(text, knobs.Count, name)
