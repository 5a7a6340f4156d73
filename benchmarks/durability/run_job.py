"""One ingest, as `fovea ingest` runs it, with a size of shards in bytes; started by `durability.jobs`."""

import os
import sys
from dataclasses import replace

from fovea.leave import leave_after


def main() -> None:
    """SOURCE DATASET GEOMETRY SHARD_BYTES [--append] [Beam options]."""
    from beam_jobs.launch import run_ingest
    from beam_jobs.options import beam_options, make_job
    from durability.twice import do_everything_twice

    source, dataset, geometry, shard_bytes, *extra = [word for word in sys.argv[1:] if word != "--append"]
    if os.environ.get("SOAK_TWICE"):
        do_everything_twice()
    job = replace(make_job(source, dataset, geometry=geometry), target_shard_bytes=int(shard_bytes))
    run_ingest(job, beam_options(extra), append="--append" in sys.argv)


if __name__ == "__main__":
    leave_after(main)
