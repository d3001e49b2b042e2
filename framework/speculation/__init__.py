"""Speculative decoding on the host: what guesses from text alone, how many guesses a step checks, and the table of all methods."""
