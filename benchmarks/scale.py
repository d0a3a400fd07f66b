"""Data at scale: makes N synthetic pairs, prepares them, draws batches, and reports speed, memory and disk.

    python benchmarks/scale.py 4500000 FOLDER

The pairs are sentences of the embedded corpus, three joined to one of about the length of news, with numbers so that
words are many and few pairs are the same. FOLDER takes about 1.8 GB for 4.5 M pairs.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Embedded, Text
from t2t.data.pipeline import TrainingBatches
from t2t.data.prepare import Sizes, prepare
from t2t.data.translation import Translation

VOCAB_SIZE = 32_000
STEPS = 300  # batches to draw


def write_pairs(path: Path, count: int, seed: int = 0) -> None:
    """`count` synthetic pairs, tab-separated."""
    rng = np.random.default_rng(seed)
    pairs = list(Embedded("quickstart").pairs("train"))
    with open(path, "w", encoding="utf-8") as file:
        for begin in range(0, count, 100_000):
            size = min(100_000, count - begin)
            chosen, numbers = rng.integers(0, len(pairs), (size, 3)).tolist(), rng.zipf(1.3, (size, 2)).tolist()
            for (a, b, c), (m, n) in zip(chosen, numbers, strict=True):
                sides = zip(pairs[a], pairs[b], pairs[c], strict=True)
                file.write("\t".join(f"{x} {y} {m}-{n} {z}" for x, y, z in sides) + "\n")


def peak() -> float:
    """Most memory that this process has had so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(count: int, folder: Path) -> None:
    """Prints one JSON object."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"pairs-{count}.tsv"
    if not text.is_file():
        write_pairs(text, count)
    os.environ["T2T_DATA"] = str(folder / "cache")
    found: dict[str, float] = {"pairs": count, "text_gb": text.stat().st_size / 1e9, "cores": os.cpu_count() or 0}
    begin, cpu = time.monotonic(), time.process_time()
    prepared = prepare(
        Translation(Text(train=str(text)), "en", "de"), Sizes(VOCAB_SIZE), lambda line: print(line, file=sys.stderr)
    )
    seconds = time.monotonic() - begin
    found |= {"prepare_seconds": seconds, "prepare_pairs_per_second": count / seconds, "prepare_peak_gb": peak()}
    found["prepare_cpu_seconds"] = time.process_time() - cpu
    found["kept"] = prepared.report["kept"]
    found["disk_gb"] = sum(file.stat().st_size for file in prepared.folder.iterdir()) / 1e9
    begin = time.monotonic()
    batches = TrainingBatches(prepared, BatchingConfig(), seed=0)
    batches[0]
    found |= {"first_batch_seconds": time.monotonic() - begin, "padding": batches.epochs.padding}
    begin = time.monotonic()
    tokens = sum(int((batches[step].target.segments != 0).sum()) for step in range(1, 1 + STEPS))
    found |= {"target_tokens_per_second": tokens / (time.monotonic() - begin), "peak_gb": peak()}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
