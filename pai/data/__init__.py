"""Data sets as bundles of train, validation and test part, in memory or streamed from files."""
