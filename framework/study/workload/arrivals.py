"""When requests arrive."""

from __future__ import annotations

import math

import numpy as np


def gamma_arrivals(num_requests: int, rate: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Arrival times in seconds, from gaps ~ Gamma(shape=burstiness, scale=1/(rate*burstiness)).

    ``burstiness`` 1 is a Poisson process, inf an even stream; ``rate`` inf puts all at 0. The times are stretched so that the
    last request arrives at num_requests/rate: every seed then offers the same load (as vLLM's serving benchmark does)."""
    if math.isinf(rate):
        return [0.0] * num_requests
    if math.isinf(burstiness):
        gaps = np.full(num_requests, 1.0 / rate)
    else:
        gaps = rng.gamma(burstiness, 1.0 / (rate * burstiness), num_requests)
    times = np.cumsum(gaps)
    # With extreme burstiness every gap can round to zero; there is nothing to stretch then.
    if times[-1] > 0:
        times *= num_requests / rate / times[-1]
    return times.tolist()
