"""Measurements beside other implementations, and their reports. Programs are run from the repository's root.

`python -m benchmarks.run` makes the latency report, `benchmarks.steps` that of quality against steps, and
`benchmarks.tasks` that of every task. docs/benchmarks.md says what is measured, and how to read it.
"""
