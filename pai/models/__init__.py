"""Architectures only: builders that take ``num_classes`` and ``in_channels``."""
