"""Decodes token ids with t2t: RUN SOURCES.json BEAM EXTRA_LENGTH DTYPE exact|early"""

import json
import sys
from pathlib import Path

from contender import serve

from t2t import checkpoint, compilation, decode, run, storage
from t2t.experiment import override

if __name__ == "__main__":
    compilation.keep_compiled()
    folder, sources, beam, extra, dtype, stop = sys.argv[1:]
    where, experiment, vocabulary = run.load(storage.folder(folder))
    experiment = override(experiment, {"model.dtype": dtype})
    params, _ = checkpoint.load_params(where, experiment)
    model, longest = experiment.model.build(), experiment.model.longest
    ids = json.loads(Path(sources).read_text())["ids"]
    config = decode.DecodingConfig(beam=int(beam), extra_length=int(extra), early_stopping=stop == "early")

    outputs: dict[int, list[int]] = {}

    def work() -> dict[str, float]:
        """Decodes all of them."""
        found = decode.decode(model, params, ids, config, longest=longest, wanted=1)
        outputs.update((i, best[0].tokens) for i, best in found)
        return {"sentences": len(ids), "tokens": sum(len(each) + 1 for each in outputs.values())}

    def pieces() -> dict[str, list[list[str]]]:
        """The outputs, in the order of the sentences."""
        return {"pieces": [vocabulary.target.pieces(outputs[i]) for i in range(len(ids))]}

    serve(work, pieces, version="this commit")
