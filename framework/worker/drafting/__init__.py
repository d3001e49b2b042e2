"""What makes drafts on the device: a model or a head that guesses, its cache, and the passes over it."""
