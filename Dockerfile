# Two images from one checkout, each from its own lock (`make locks`): docs/dataflow.md.
#   docker build --target worker  --tag REGISTRY/fovea-worker:TAG .
#   docker build --target trainer --tag REGISTRY/fovea-trainer:TAG .
# Beam's version and the minor of Python are those of beam_jobs/worker.lock and of the machine that submits.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY shards shards
COPY manifests manifests
COPY ingest ingest
COPY beam_jobs beam_jobs
COPY train train
COPY eval eval
COPY fovea fovea
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir dist .

FROM apache/beam_python3.11_sdk:2.77.0 AS harness

FROM python:3.11-slim-bookworm AS worker
WORKDIR /build
COPY beam_jobs/worker.lock worker.lock
RUN python -m pip install --no-cache-dir --require-hashes --requirement worker.lock
COPY --from=wheel /build/dist dist
RUN python -m pip install --no-cache-dir --no-deps dist/fovea_oct-*.whl
RUN python -m pip check
RUN python -P -c "import apache_beam, gcsfs, s3fs, beam_jobs.launch, ingest.isolated"
COPY --from=harness /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM python:3.11-slim-bookworm AS trainer
WORKDIR /build
COPY train/trainer.lock trainer.lock
RUN python -m pip install --no-cache-dir --require-hashes --requirement trainer.lock
COPY --from=wheel /build/dist dist
RUN python -m pip install --no-cache-dir --no-deps dist/fovea_oct-*.whl
RUN python -m pip check
RUN python -P -c "import gcsfs, s3fs, torch_xla, train.loop"
ENTRYPOINT ["fovea"]
