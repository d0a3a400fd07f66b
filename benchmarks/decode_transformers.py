"""Decodes the same pieces with Hugging Face's Marian: FOLDER SOURCES.json BEAM EXTRA_LENGTH ROWS THREADS"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from contender import by_length, serve

ALPHA = 0.6  # of section 6.1; here the sum is divided by length^α, and a batch has one limit
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if __name__ == "__main__":
    folder, sources, beam, extra, rows, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = transformers.MarianMTModel.from_pretrained(folder).eval().to(DEVICE)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    pieces = json.loads(Path(sources).read_text())["pieces"]
    ids = [[*tokenizer.convert_tokens_to_ids(each), tokenizer.eos_token_id] for each in pieces]
    found: dict[int, list[str]] = {}

    def translate(chosen: list[int]) -> None:
        """The outputs of one batch."""
        padded: Any = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt").to(DEVICE)
        outputs = model.generate(
            **padded,
            num_beams=int(beam),
            length_penalty=ALPHA,
            early_stopping=False,
            max_new_tokens=padded["input_ids"].shape[1] + int(extra),
            max_length=None,
            forced_eos_token_id=None,
        )
        for i, output in zip(chosen, outputs, strict=True):
            found[i] = tokenizer.convert_ids_to_tokens(output, skip_special_tokens=True)

    def work() -> dict[str, float]:
        """Decodes all of them."""
        with torch.inference_mode():
            for chosen in by_length(ids, int(rows)):
                translate(chosen)
        return {"sentences": len(ids), "tokens": sum(len(each) + 1 for each in found.values())}

    serve(work, lambda: {"pieces": [found[i] for i in range(len(ids))]}, version=transformers.__version__)
