"""What `benchmarks/fuzz.py` does to the ingest, and what it promises: docs/reliability.md."""
