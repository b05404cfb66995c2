"""What the studies make of their runs: masks from stored scores, numbers, tables."""
