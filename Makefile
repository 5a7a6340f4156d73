# The whole developer interface. Needs Python 3.11+ and make; `make demo` and `make test` work on a fresh clone and again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
XLA := .venv-xla
STAMP := $(VENV)/.installed
OUT ?= out/demo

.PHONY: install demo test test-xla lint format docs conformance geometry signal guard-cost fuzz soak scale memory bench bench-recipes locks image-lines clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

demo: $(STAMP)
	$(BIN)/fovea demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# torch_xla on a CPU, in the environment of the trainer's image: it fits one torch only (8 GB with its CUDA libraries).
test-xla: $(XLA)/.installed
	PJRT_DEVICE=CPU $(XLA)/bin/python -m pytest --confcutdir tests/xla -p no:cacheprovider tests/xla

$(XLA)/.installed: train/trainer.lock
	test -x $(XLA)/bin/python || $(PYTHON) -m venv $(XLA)
	$(XLA)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement train/trainer.lock
	$(XLA)/bin/python -m pip install --quiet --disable-pip-version-check 'pytest>=8.3'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is generated from code: the reason codes.
docs: $(STAMP)
	$(BIN)/python -m manifests.reasons_page docs/reasons.md

# Needs root for the Debian packages.
conformance: $(STAMP)
	command -v dcmdump dcmconv dciodvfy >/dev/null || (apt-get update -qq && apt-get install -y -qq dcmtk dicom3tools)
	$(BIN)/python benchmarks/conformance.py

# Full-size volumes of every raster protocol through every geometry: docs/geometry.md (about 20 minutes).
geometry: $(STAMP)
	$(BIN)/python benchmarks/geometry.py

# The phantom's label signal through the whole job, with and without: docs/phantom.md (about 20 minutes).
signal: $(STAMP)
	$(BIN)/python benchmarks/label_signal.py

# Damaged, hostile, good and foreign files through the ingest: docs/reliability.md (six targets, each under 30 minutes).
fuzz: $(STAMP)
	$(BIN)/python benchmarks/fuzz.py all

# A dataset under repeats, kills, races, failing stores, damage and growth: docs/reliability.md (under 40 minutes).
soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py all

# The guard's cost on good full-size files: docs/reliability.md (about 5 minutes).
guard-cost: $(STAMP)
	$(BIN)/python benchmarks/guard.py

# Listing, planning and committing 10^4, 10^5 and 10^6 files: docs/performance.md (about 10 minutes).
scale: $(STAMP)
	$(BIN)/python benchmarks/scale.py

# Peak memory while full-size volumes are packed: docs/performance.md (about 4 minutes).
memory: $(STAMP)
	$(BIN)/python benchmarks/memory.py

bench: $(STAMP)
	$(BIN)/python benchmarks/train_step.py --recipe cpu-small --synthetic --baseline full

# The recipes' sizes for `benchmarks/train_step.py` where pydantic and YAML are not.
bench-recipes: $(STAMP)
	$(BIN)/python benchmarks/plain_recipe.py

# The pinned packages of the worker's and of the trainer's image, for Linux on x86 and Python 3.11: docs/dataflow.md.
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --generate-hashes --no-annotate --no-config --python-version 3.11 \
	--python-platform x86_64-manylinux_2_31 --custom-compile-command 'make locks'

locks: $(STAMP)
	$(BIN)/python -m pip install --quiet 'uv>=0.13'
	$(LOCK) --extra ingest --output-file beam_jobs/worker.lock
	$(LOCK) --extra tpu --output-file train/trainer.lock

# What the Dockerfile runs, in clean environments in place of images (downloads about 4 GB, needs 8 GB of disk).
image-lines: $(STAMP)
	$(BIN)/python tests/test_dockerfile.py worker trainer

clean:
	rm -rf $(VENV) $(XLA) out
