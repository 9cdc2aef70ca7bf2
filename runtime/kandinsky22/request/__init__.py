"""Requests: what a user asks for, checked, and resolved against a bundle."""
