"""Quantised bundles: graphs of eight bits, calibrated on real runs of the checkpoint (docs/quantisation.md)."""
