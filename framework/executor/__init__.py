"""Executors: what a step runs on. One protocol, chosen by ``executor.kind``."""
