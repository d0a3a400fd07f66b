"""Table 1, measured: kept in benchmarks/results, drawn in docs/table1.svg, and written into BENCHMARKS.md.

    python benchmarks/table1.py --name table1_cpu

The same as `t2t bench table1`, on a machine that does nothing else.
"""

import argparse
import sys
from pathlib import Path

from page import ROOT, keep, origin

from t2t import memory, storage
from t2t.report import table1

PICTURED = "table1_cpu"  # the result whose picture is the README's


def main() -> None:
    """Measures, keeps what was found, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=table1.LENGTHS)
    parser.add_argument("--widths", default=table1.WIDTHS)
    parser.add_argument("--name", required=True, help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    options = parser.parse_args()
    lengths, widths = table1.sizes(options.lengths, "lengths"), table1.sizes(options.widths, "widths")
    memory.one_heap()
    found = table1.measure(lengths, widths, lambda line: print(line, file=sys.stderr, flush=True))
    how = f"t2t bench table1 --lengths {options.lengths} --widths {options.widths}"
    keep(options.name, {"kind": "table1", **found, **origin([how])}, options.results)
    if options.name == PICTURED and not options.results:
        storage.write(ROOT / "docs" / "table1.svg", table1.svg(found))
    print(table1.text(found))


if __name__ == "__main__":
    main()
