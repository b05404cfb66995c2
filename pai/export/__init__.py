"""Pruned networks for use: channels physically removed, weights stored without their zeros."""
