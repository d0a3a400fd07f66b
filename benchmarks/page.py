"""BENCHMARKS.md, written from what is kept in benchmarks/results: by each script that adds to that, or alone.

python benchmarks/page.py
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from t2t import cost, storage
from t2t.report import charts, table1

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"
WRITTEN = (":(exclude,top)benchmarks/results", ":(exclude,top)BENCHMARKS.md")  # by measuring
HEAD = """# Benchmarks

Written by `benchmarks/page.py` from `benchmarks/results`; not by hand. Rates and ratios are medians, with quartiles
in brackets. `first` is the first time, with what is compiled or loaded then; the rates leave it out.
"""
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of these a CPU's speed depends most on the first it has
# What is compared in docs/recall.svg, by the names of experiments, and what it is called there.
NAMES = {
    "recall_transformer": "Transformer",
    "recall_language_model": "Transformer, decoder only",
    "recall_restricted": "Transformer, restricted (r = 16)",
    "recall_recurrent": "recurrent (LSTM)",
    "recall_convolutional": "convolutional (ConvS2S, k = 3)",
}


def kept() -> list[dict[str, Any]]:
    """All results that the page is of: those of engines beside each other have no "kind"."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return [each for each in found if "engines" in each or each.get("kind") in SECTIONS]


def keep(name: str, found: dict[str, Any], folder: Path | None = None) -> None:
    """Writes a result beside the others, and the page anew; into another folder, the result alone."""
    storage.write((folder or RESULTS) / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if not folder:
        write()


def write() -> None:
    """Writes BENCHMARKS.md."""
    storage.write(ROOT / "BENCHMARKS.md", page(kept()))


def page(results: list[dict[str, Any]]) -> str:
    """BENCHMARKS.md."""
    return "\n".join([HEAD, *(SECTIONS[each.get("kind", "engines")](each) for each in results)])


def origin(how: list[str]) -> dict[str, Any]:
    """When, where and at which commit something was measured, and by which commands."""
    return {
        "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": machine(os.cpu_count()),
        "commit": commit(),
        "how": how,
        "jax": importlib.metadata.version("jax"),
    }


def machine(threads: int | None) -> str:
    """What is measured on: the accelerator, if JAX has one, the processor, how many threads, and which Python."""
    first = jax.devices()[0]
    accelerator = "" if first.platform == "cpu" else f"{first.device_kind} in a machine with "
    return f"{accelerator}{processor()}, {threads} threads; Python {platform.python_version()}"


def processor() -> str:
    """The name of this machine's processor, and the most that it has of INSTRUCTIONS."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    most = next((each for each in INSTRUCTIONS if each in flags), "")
    return f"{name} with {most}" if most else name


def commit() -> str:
    """The commit that is measured, "-dirty" behind it where files differ that are not those of results."""
    try:
        said = [_git("describe", "--always"), _git("status", "--porcelain", "--", ROOT, *WRITTEN)]
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return "not known"
    return said[0] + "-dirty" * bool(said[1])


def _git(*words: str | Path) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def _origin(found: dict[str, Any]) -> list[str]:
    """When, where and by which commands, as lines."""
    return [
        f"{found['when']}, {found['machine']}; jax {found['jax']}; commit {found['commit']}. What was run:",
        "",
        "```text",
        *found["how"],
        "```",
        "",
    ]


# ------------------------------------------------------------------------------ Sections


def _engines(found: dict[str, Any]) -> str:
    """Engines beside each other."""
    scores = [engine["bleu"] for engine in found["engines"].values() if "bleu" in engine]
    rows = [
        f"| {name} {engine['version']} | {_spread(engine['rate'], 1)} | {_spread(engine['t2t_over_it'], 2)} "
        f"| {engine['tokens']:,.0f} | {engine['first_seconds']:.0f} s |"
        + (f" {engine['bleu']['score']:.2f} |" if scores else "")
        for name, engine in found["engines"].items()
    ]
    machine = (
        [
            f"t2t reached {found['utilisation']['median']:.0%} of the {found['matrix_rate']['median'] / 1e9:,.0f} "
            f"GFLOP/s that large products of matrices had in the same minutes; {found['padding']:.1%} of its positions "
            "were padding.",
            "",
        ]
        if "utilisation" in found
        else []
    )
    return "\n".join(
        [
            f"## {found['what']}: {found['model']}, on {found['machine'].split(',')[0]}",
            "",
            f"| engine | {found['unit']}/s | t2t is so many times as fast | target tokens | first |"
            + (" `sacrebleu` |" if scores else ""),
            "|---|---|---|---|---|" + ("---|" if scores else ""),
            *rows,
            "",
            *([f"`sacrebleu`: {scores[0]['signature']}, of the last round's outputs.", ""] if scores else []),
            *machine,
            *_origin(found),
        ]
    )


def _spread(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} to {spread['high']:,.{digits}f})"


def _table1(found: dict[str, Any]) -> str:
    """Layers by length and width."""
    return "\n".join(["## Table 1, measured", "", table1.markdown(found), "", *_origin(found)])


def _recall(found: dict[str, Any]) -> str:
    """Accuracy by distance."""
    distances = found["runs"][0]["accuracy"]
    rows = [
        f"| {NAMES[run['experiment']]} | {run['decoder']:,} | {run['steps']:,} | {run['seconds'] / 60:.1f} | "
        + " | ".join(f"{share:.0%}" for share in run["accuracy"].values())
        + " |"
        for run in found["runs"]
    ]
    return "\n".join(
        [
            "## A word recalled after n steps",
            "",
            f"The part of test lines whose last word is told right; by chance 1 in {found['words']}. "
            f"Training had distances up to {found['trained']}.",
            "",
            f"| architecture | decoder's parameters | steps | minutes | {' | '.join(f'n = {n}' for n in distances)} |",
            "|---|" + "---:|" * (3 + len(distances)),
            *rows,
            "",
            *_origin(found),
        ]
    )


def _curves(found: dict[str, Any]) -> str:
    """Dev perplexity by step."""
    steps = list(found["runs"][0]["perplexity"])
    rows = [
        f"| {run['way']} | {run['tokens']:,} | {run['rate']:,.0f} | "
        + " | ".join(f"{run['perplexity'][step]:.2f}" for step in steps)
        + " |"
        for run in found["runs"]
    ]
    return "\n".join(
        [
            f"## Training with and without what makes it fast: dev perplexity of {found['experiment']}",
            "",
            f"| | target tokens | tokens/s | {' | '.join(f'step {int(step):,}' for step in steps)} |",
            "|---|" + "---:|" * (2 + len(steps)),
            *rows,
            "",
            *_origin(found),
        ]
    )


def _lengths(found: dict[str, Any]) -> str:
    """What each kind of position makes of rows longer than it was trained on."""
    lengths = [name for name in next(iter(found["read"].values())) if name.isdecimal()]
    rows = []
    for kind, read in found["read"].items():
        cells = (f"{read[n]['perplexity']:.1f} | {read[n]['perplexity_of_last_quarter']:.1f}" for n in lengths)
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    heads = " | ".join(f"{n} tokens | its last quarter" for n in lengths)
    return "\n".join(
        [
            f"## Trained on rows of {found['trained']} tokens, read on longer ones: perplexity by kind of position",
            "",
            f"Joined dev sentences of the quickstart, after {found['steps']:,} steps of {found['tokens']:,} tokens.",
            "",
            f"| positions | {heads} |",
            "|---|" + "---:|" * 2 * len(lengths),
            *rows,
            "",
            *_origin(found),
        ]
    )


def _architectures(found: dict[str, Any]) -> str:
    """What each reaches for the same FLOPs and in the same time."""
    signature = found["runs"][0]["flops"]["scores"]["sacrebleu"]["signature"]
    rows = []
    for run in found["runs"]:
        for of in ("flops", "time"):
            point = run[of]
            score = point["scores"]["sacrebleu"]
            rows.append(
                f"| `{run['experiment']}` | {run['parameters'] / 1e6:.2f} | {of} | {point['steps']:,} "
                f"| {cost.short(point['flops'])} | {point['seconds'] / 60:.1f} | {point['tokens_per_second']:,.0f} "
                f"| {point['perplexity']:.2f} | {score['score']:.2f} [{score['low']:.2f}, {score['high']:.2f}] |"
            )
    return "\n".join(
        [
            f"## Architectures beside {found['beside']}: the same parameters, and the same FLOPs or the same time",
            "",
            "| | parameters, M | the same | steps | FLOPs | minutes | target tokens/s | perplexity | `sacrebleu` |",
            "|---|---:|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"`sacrebleu`: {signature}, of the test split.",
            "",
            *_origin(found),
        ]
    )


def recall_picture(found: dict[str, Any]) -> str:
    """docs/recall.svg: accuracy by distance."""
    panels = []
    for steps in dict.fromkeys(run["steps"] for run in found["runs"]):
        curves = {
            NAMES[run["experiment"]]: [(int(n), share) for n, share in run["accuracy"].items()]
            for run in found["runs"]
            if run["steps"] == steps
        }
        title = f"after {steps:,} steps of training"
        panels.append(charts.Panel(title, "distance in steps", curves, lambda share: f"{share:.0%}", log=False))
    title = f"A word recalled after n steps: accuracy; trained on distances up to {found['trained']}"
    return charts.picture(title, panels)


SECTIONS = {
    "engines": _engines,
    "table1": _table1,
    "recall": _recall,
    "curves": _curves,
    "architectures": _architectures,
    "lengths": _lengths,
}

if __name__ == "__main__":
    write()
