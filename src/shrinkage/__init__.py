"""Train neural networks that end up small, and prove it."""
