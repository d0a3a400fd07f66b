"""Decodes the same pieces with CTranslate2: FOLDER SOURCES.json BEAM EXTRA_LENGTH COMPUTE_TYPE ROWS THREADS"""

import json
import sys
from pathlib import Path

import ctranslate2
from contender import by_length, serve

ALPHA = 0.6  # of section 6.1; CTranslate2 divides by length^α and has one limit for a batch
DEVICE = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"

if __name__ == "__main__":
    folder, sources, beam, extra, compute_type, rows, threads = sys.argv[1:]
    pieces = json.loads(Path(sources).read_text())["pieces"]
    batches = by_length(pieces, int(rows))
    # A batch a thread: int8 is several times as fast so as with all threads in one batch, float32 a little faster.
    threading = dict(inter_threads=int(threads), intra_threads=1)
    engine = ctranslate2.Translator(folder, device=DEVICE, compute_type=compute_type, **threading)
    outputs: dict[int, list[str]] = {}

    def work() -> dict[str, float]:
        """Decodes all of them."""
        waiting = [
            engine.translate_batch(
                [pieces[i] for i in chosen],
                beam_size=int(beam),
                length_penalty=ALPHA,
                max_decoding_length=len(pieces[chosen[0]]) + 1 + int(extra),
                suppress_sequences=[["<pad>"]],
                asynchronous=True,
            )
            for chosen in batches
        ]
        for chosen, found in zip(batches, waiting, strict=True):
            outputs.update((i, each.result().hypotheses[0]) for i, each in zip(chosen, found, strict=True))
        return {"sentences": len(pieces), "tokens": sum(len(each) + 1 for each in outputs.values())}

    serve(work, lambda: {"pieces": [outputs[i] for i in range(len(pieces))]}, version=ctranslate2.__version__)
