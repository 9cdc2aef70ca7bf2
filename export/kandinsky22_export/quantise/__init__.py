"""Quantised bundles: int8 graphs, calibrated on real runs of the checkpoint itself. docs/quantisation.md describes them."""
