"""Executors without a device, and the models of cost and shape that they need."""
