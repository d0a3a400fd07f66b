"""Experiments by name: one file a table of the paper, and the quickstart."""
