"""One side of a comparison: a process that does its work once for each line it reads, and tells what that took."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Found = dict[str, Any]


def serve(work: Callable[[], Found], after: Callable[[], Found] = dict, **about: Any) -> None:
    """Does `work` once unmeasured, then once a line of standard input; a line of JSON answers each.

    `work` returns what it counted. The first answer has `about` and "first_seconds"; the others have "seconds", and
    what `after` finds, which is not timed. Standard output is for answers alone.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    begin = time.perf_counter()
    work()
    print(json.dumps({"first_seconds": time.perf_counter() - begin, **about}), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        found = work()
        found["seconds"] = time.perf_counter() - begin
        print(json.dumps({**found, **after()}), file=answers, flush=True)


def by_length(sentences: list[list[Any]], rows: int) -> list[list[int]]:
    """The sentences' indices in batches of `rows` of like length, the longest first and first in its batch."""
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    return [order[first : first + rows] for first in range(0, len(order), rows)]
