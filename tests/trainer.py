"""A t2t of its own process that knows the toy experiment: python trainer.py FOLDER VERB WORDS...

FOLDER holds the toy's files already. CLOCK in the environment: how many times as fast this process's clock runs.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import toys

from t2t import train
from t2t.__main__ import main
from t2t.experiment import register


def trainer(words: list[str]) -> int:
    """The exit code."""
    clock, faster = time.monotonic, float(os.environ.get("CLOCK", "1"))
    train.time = SimpleNamespace(monotonic=lambda: faster * clock())
    register(toys.reversal_in(Path(words[0])))
    return main(words[1:])


if __name__ == "__main__":
    sys.exit(trainer(sys.argv[1:]))
