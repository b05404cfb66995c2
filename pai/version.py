"""The version of pai, in its only place."""

__version__ = "0.1.0"
