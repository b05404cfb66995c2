"""Experiment trackers: mirrors of the run directory, never the only place of a number."""
