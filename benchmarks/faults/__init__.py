"""The random campaign: what users type and what the world does to a run. `python -m benchmarks.faults --help`."""
