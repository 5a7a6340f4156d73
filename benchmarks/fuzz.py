"""The figures of docs/reliability.md: `make fuzz`, or one target, such as `python benchmarks/fuzz.py clean`.

Every target prints tables and its promises, and exits with 1 when one is broken. Each takes under 30 minutes on two
cores.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from reliability import clean, corpus, job, limits, mutations, truncations
from reliability.report import run_each

TARGETS = ("mutations", "job", "truncations", "clean", "limits", "corpus")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    targets = parser.add_subparsers(dest="target", required=True)
    one = targets.add_parser("mutations", help="damaged files, one by one")
    one.add_argument("--count", type=int, default=20_000)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--only", type=int, metavar="NUMBER", help="one mutation, such as one that broke a promise")
    one.set_defaults(run=mutations.run)
    whole = targets.add_parser("job", help="damaged files through a whole job")
    whole.add_argument("--count", type=int, default=1000)
    whole.add_argument("--seed", type=int, default=1)
    whole.set_defaults(run=job.run)
    cuts = targets.add_parser("truncations", help="files and frames that end too early")
    cuts.add_argument("--tail", type=int, default=truncations.TAIL_BYTES, help="bytes at the end, each cut at")
    cuts.add_argument("--others", type=int, default=truncations.OTHER_PLACES, help="places to cut before them")
    cuts.set_defaults(run=truncations.run)
    good = targets.add_parser("clean", help="good files")
    good.add_argument("--count", type=int, default=1000, help="raster scans")
    good.add_argument("--seed", type=int, default=clean.COHORT_SEED)
    good.add_argument("--small-only", action="store_true", help="no full-size volumes")
    good.set_defaults(run=clean.run)
    targets.add_parser("limits", help="files made to exhaust a reader").set_defaults(run=limits.run)
    others = targets.add_parser("corpus", help="files that others made")
    others.add_argument("--folder", type=Path, action="append", default=[], help="more of them")
    others.set_defaults(run=corpus.run)
    targets.add_parser("all", help="every target in turn").set_defaults(run=partial(run_each, TARGETS))
    return parser.parse_args(words)


def main() -> int:
    """Run a target."""
    options = parse(sys.argv[1:])
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
