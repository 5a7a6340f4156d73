"""Figures of docs/reliability.md: `make soak`, or one target, such as `python benchmarks/soak.py kills`.

Every target prints tables and its promises, and exits with 1 when one is broken; all of them take under 40 minutes on
two cores.
"""

import argparse
import sys
from functools import partial

from durability import determinism, flips, growth, kills, races, stores
from reliability.report import run_each

TARGETS = ("determinism", "kills", "races", "flips", "stores", "growth")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    targets = parser.add_subparsers(dest="target", required=True)
    same = targets.add_parser("determinism", help="the same input under other circumstances")
    same.add_argument("--count", type=int, default=20)
    same.set_defaults(run=determinism.run_target)
    killed = targets.add_parser("kills", help="SIGKILL at random moments, then again")
    killed.add_argument("--count", type=int, default=100)
    killed.set_defaults(run=kills.run_target)
    raced = targets.add_parser("races", help="every bundle twice, and two jobs on one DATASET")
    raced.add_argument("--count", type=int, default=8)
    raced.set_defaults(run=races.run_target)
    damaged = targets.add_parser("flips", help="verify against damage")
    damaged.add_argument("--flips", type=int, default=2000)
    damaged.add_argument("--cuts", type=int, default=500)
    damaged.set_defaults(run=flips.run_target)
    places = targets.add_parser("stores", help="disk, S3 and GCS, healthy and failing")
    places.add_argument("--no-train", dest="train", action="store_false", help="a small grid, and no pretraining")
    places.add_argument("--no-stall", dest="stall", action="store_false", help="no requests that are never answered")
    places.set_defaults(run=stores.run_target)
    grown = targets.add_parser("growth", help="--append of a tenth more files")
    grown.add_argument("--participants", type=int, default=4)
    grown.set_defaults(run=growth.run_target)
    targets.add_parser("all", help="every target in turn").set_defaults(run=partial(run_each, TARGETS))
    return parser.parse_args(words)


def main() -> int:
    """Run a target."""
    options = parse(sys.argv[1:])
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
