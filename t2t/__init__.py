"""t2t: the Transformer of "Attention Is All You Need" in JAX, its experiments by name."""
