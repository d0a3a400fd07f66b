"""Weights for other engines."""
