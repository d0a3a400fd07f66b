"""Architectures: one file each. Each has a frozen config whose `build()` gives the Flax module."""
