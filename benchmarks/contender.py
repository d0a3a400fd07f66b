"""One side of a comparison: a process that does its work once for each line it reads, and tells what that took."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(work: Callable[[], dict[str, float]], **about: Any) -> None:
    """Does `work` once unmeasured, then once a line of standard input; a line of JSON answers each.

    `work` returns what it counted. The first answer has `about` and "first_seconds"; the others have "seconds" too.
    Standard output is for answers alone.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    begin = time.perf_counter()
    work()
    print(json.dumps({"first_seconds": time.perf_counter() - begin, **about}), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        found = work()
        print(json.dumps({**found, "seconds": time.perf_counter() - begin}), file=answers, flush=True)
