"""Scripts that measure and reproduce what the package reports."""
