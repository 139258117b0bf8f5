"""Measurements of `benchmarks/run.py`; each module runs in a separate process and prints one JSON object per row."""
