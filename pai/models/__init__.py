"""Architectures only: builders that take ``num_classes``, ``in_channels``, maybe ``image_size``."""
