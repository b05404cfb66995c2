"""What the studies of layer collapse and of seeds share: masks and numbers from stored scores."""
