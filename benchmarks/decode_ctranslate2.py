"""Decodes the same pieces with CTranslate2: FOLDER SOURCES.json BEAM COMPUTE_TYPE ROWS THREADS"""

import json
import sys
from pathlib import Path

import ctranslate2
from contender import serve

ALPHA, EXTRA_LENGTH = 0.6, 50  # of section 6.1; CTranslate2 divides by length^α and has one limit for a batch

if __name__ == "__main__":
    folder, sources, beam, compute_type, rows, threads = sys.argv[1:]
    pieces = json.loads(Path(sources).read_text())["pieces"]
    # A batch a thread: int8 is several times as fast so as with all threads in one batch, float32 a little faster.
    engine = ctranslate2.Translator(folder, compute_type=compute_type, inter_threads=int(threads), intra_threads=1)

    outputs: list[list[str]] = []

    def work() -> dict[str, float]:
        """Decodes all of them."""
        found = engine.translate_batch(
            pieces,
            beam_size=int(beam),
            length_penalty=ALPHA,
            max_batch_size=int(rows),
            max_decoding_length=max(map(len, pieces)) + 1 + EXTRA_LENGTH,
            suppress_sequences=[["<pad>"]],
        )
        outputs[:] = [each.hypotheses[0] for each in found]
        return {"sentences": len(pieces), "tokens": sum(len(each) + 1 for each in outputs)}

    serve(work, lambda: {"pieces": outputs}, version=ctranslate2.__version__)
