"""Measurements of `benchmarks/run.py`; each module runs in a process of its own and prints one JSON object per row."""
