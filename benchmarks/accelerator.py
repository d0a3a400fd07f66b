"""All that is to be measured on a GPU or TPU, by one command; each answer is a file in FOLDER.

    python benchmarks/accelerator.py FOLDER [--pairs 300000] [--steps 50] [--peers PYTHON] [--flax DIR] [knobs]

The paper's base and big models at its batch of 25,000 tokens a side, on synthetic pairs of about the length of news:
speed depends on lengths, not on what is said. NAME.json has what was found and NAME.log what was said; a measurement
that fails leaves its log and the others go on. Knobs, as for `t2t train`, are passed to all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from scale import write_pairs

HERE = Path(__file__).parent
BIG = ["--model.d_model", "1024", "--model.d_ff", "4096", "--model.num_heads", "16", "--model.p_drop", "0.3"]
DECODED = 64  # pairs of dev, whose random weights make every output as long as allowed


def measurements(options: argparse.Namespace, data: list[str]) -> dict[str, list[str]]:
    """The words after `python` of each, by name."""
    bench = ["-m", "t2t", "bench"]
    number = ["--number", str(options.steps), "--json", *data]
    found = {
        "train_base": [*bench, "train", "own_base", *number],
        "train_big": [*bench, "train", "own_base", *number, *BIG],
        "input": [*bench, "input", "own_base", *number],
        "decode_base": [*bench, "decode", "own_base", "--number", str(DECODED), "--json", *data],
    }
    if options.peers:
        peers = [
            str(HERE / "peers.py"),
            "train",
            "own_base",
            "--peers",
            options.peers,
            "--results",
            str(options.folder),
        ]
        peers += ["--flax", options.flax] if options.flax else []
        found["peers_base"] = [*peers, "--name", "peers_base", *data]
        found["peers_big"] = [*peers, "--name", "peers_big", *data, *BIG]
    return found


def main() -> None:
    """Measures one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--peers", default="", help="the Python that has the peers installed")
    parser.add_argument("--flax", default="", help="the folder examples/wmt of flax's repository")
    options, knobs = parser.parse_known_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    train, dev = (options.folder / f"{name}.tsv" for name in ("train", "dev"))
    write_pairs(train, options.pairs)
    write_pairs(dev, DECODED)
    data = ["--task.corpus.train", str(train), "--task.corpus.dev", str(dev), *knobs]
    environment = {"T2T_DATA": str(options.folder / "cache"), **os.environ}
    for name, words in measurements(options, data).items():
        begin = time.monotonic()
        with open(options.folder / f"{name}.log", "w") as log:
            done = subprocess.run(
                [sys.executable, *words], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        if done.returncode == 0 and not name.startswith("peers"):
            (options.folder / f"{name}.json").write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")
        print(f"{name}: exit status {done.returncode} after {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
