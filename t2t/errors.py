"""Mistakes that a user can mend: the command line prints each as one line and exits with code 2."""

import difflib
from collections.abc import Iterable

MOST = 30  # names that a message lists


class UserError(Exception):
    """Says what was given, what is allowed and, where there is one, the nearest match."""


class Passing(UserError):
    """One that may be gone when the same command is given again: the command line exits with code 75."""


def out_of_memory(error: BaseException) -> str:
    """What to say when a device, or this process, had no memory left; "" for any other error."""
    said = str(error).strip().partition("\n")[0]
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if isinstance(error, MemoryError) or (of_jax and ("RESOURCE_EXHAUSTED" in said or "Out of memory" in said)):
        less = "shorter sentences, or fewer at a time (--decoding.rows, --batching.tokens), need less"
        return f"out of memory ({said}): {less}"
    return ""


def unknown(what: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is none of `allowed`: names the near misses, or else all that is allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=3, cutoff=0.5)
    more = f" and {len(allowed) - MOST} more" if len(allowed) > MOST else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed[:MOST])}{more}"
    return UserError(f"no {what} {given!r}; {hint}")
