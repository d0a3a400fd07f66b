"""Evaluations and scores as text on standard output."""

from typing import Any


def described(found: dict[str, Any]) -> str:
    """Which weights an evaluation is of, and how it searched, in words."""
    from t2t import checkpoint

    if "members" in found:
        weights = " and ".join(f"{m['run']} ({checkpoint.described(m['checkpoints'])})" for m in found["members"])
    else:
        weights = checkpoint.described(found["checkpoints"])
    how = found["decoding"]
    return f"{weights}; beam {how['beam']}, alpha {how['alpha']:g}" if how else weights


def evaluation(found: dict[str, Any]) -> None:
    """Prints an evaluation: what scores.json says, with its "folder"."""
    print(f"{found['split']} split, weights: {described(found)}")
    print(f"perplexity    {found['perplexity']:.2f} per token, unsmoothed")
    scores(found["scores"])
    if repaired := found["outputs"].get("repaired"):
        print(f"repaired      {repaired:,} outputs were no trees over their sentences' words")
    print(f"outputs       {found['folder']}")


def scores(scores: dict[str, dict[str, Any]]) -> None:
    """Prints scores by name, each with its interval and signature."""
    for name, found in scores.items():
        interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
        print(f"{name:<13} {found['score']:.2f} {interval} ({found['signature']})")
