"""Measurements of the product. `python -m benchmarks --help` lists them."""
