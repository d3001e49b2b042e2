"""Building blocks of ``experiments/train_tiny.py``: the models shipped with the package."""
