"""Scorers: from a model and scoring batches to one score per prunable weight; high = keep."""
