"""The layers that models are assembled from; each holds bound kernels and names no implementation."""
