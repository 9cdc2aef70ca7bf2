"""Measurements of a bundle on a machine: time, memory, and numbers against a reference."""
