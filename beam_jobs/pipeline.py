"""An empty pipeline, which leaves nothing behind when it is not run."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.errors import JobOptionError


@contextmanager
def new_pipeline(options: PipelineOptions) -> Iterator[beam.Pipeline]:
    """An empty pipeline; making it proves that there is such a runner and that it has the options that it needs.

    Beam makes a temporary folder with each, and removes it only of one that is run.

    Raises:
        JobOptionError: if there is no such runner, or it lacks an option.
    """
    # Beam logs every worker's start and a traceback per bundle; the error itself arrives as an exception.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL + 1)
    try:
        pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise JobOptionError(f"Apache Beam cannot start its runner: {said}.") from error
    try:
        yield pipeline
    finally:
        shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
