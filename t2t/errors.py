"""Mistakes that a user can mend: the command line prints each as one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says what was given, what is allowed and, where there is one, the nearest match."""


def unknown(what: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is none of `allowed`: names the near misses, or else all that is allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed)}"
    return UserError(f"no {what} {given!r}; {hint}")
