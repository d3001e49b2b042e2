"""Models: what a checkpoint describes, and the decoder assembled from it."""
