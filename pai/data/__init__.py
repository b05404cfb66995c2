"""Data sets as bundles of in-memory image tensors with train, validation and test kept apart."""
