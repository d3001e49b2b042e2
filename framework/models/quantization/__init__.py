"""How checkpoints store weights: a scheme per format turns a part's tensors into an op and what that op binds.

A new format is a class here that does what ``scheme.Scheme`` says; ``builder`` picks it by the model's config. Nothing else in
the framework knows how a weight is stored.
"""
