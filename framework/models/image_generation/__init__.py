"""Pipelines that make images: the diffusers library's, with our attention and linear layers put in."""
