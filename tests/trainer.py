"""A t2t of its own process that knows the toy experiment: python trainer.py FOLDER VERB WORDS...

FOLDER holds the toy's files already.
"""

import sys
from pathlib import Path

import toys

from t2t.__main__ import main
from t2t.experiment import register

if __name__ == "__main__":
    register(toys.reversal_in(Path(sys.argv[1])))
    sys.exit(main(sys.argv[2:]))
