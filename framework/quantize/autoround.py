"""AutoRound (arXiv 2309.05516), by the library of its authors."""
