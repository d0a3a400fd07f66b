"""Text to batches. Nothing here imports JAX: preparing data needs no accelerator, and reading it no device."""
