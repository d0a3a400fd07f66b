"""Decodes token ids with t2t: RUN SOURCES.json BEAM"""

import json
import sys
from pathlib import Path

from contender import serve

from t2t import checkpoint, compilation, decode, run, storage

if __name__ == "__main__":
    compilation.keep_compiled()
    folder, sources, beam = sys.argv[1:]
    where, experiment, _ = run.load(storage.folder(folder))
    params, _ = checkpoint.load_params(where.checkpoints, experiment)
    model, longest = experiment.model.build(), experiment.model.longest
    ids = json.loads(Path(sources).read_text())["ids"]
    config = decode.DecodingConfig(beam=int(beam))

    def work() -> dict[str, float]:
        """Decodes all of them."""
        found = decode.decode(model, params, ids, config, longest=longest, wanted=1)
        return {"sentences": len(ids), "tokens": sum(len(best[0].tokens) + 1 for _, best in found)}

    serve(work, version="this commit")
