"""Sound in prompts: from a waveform to what an encoder reads."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


class SoundFeatures:
    """The library's feature extractor of the model in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, sound: Any) -> np.ndarray:
        """sound: (waveform [samples], sampling rate in Hz) -> float32 [bins, frames]. Raises ValueError for what is none, for
        another rate than the model's, and for more seconds than it reads."""
        try:
            waveform, rate = sound
            samples = np.asarray(waveform, dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"audio must be (waveform, sampling rate in Hz); found {type(sound).__name__}") from None
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise ValueError(f"an audio waveform must be finite numbers of one channel; found an array of shape {samples.shape}")
        extractor = self._extractor
        if rate != extractor.sampling_rate:
            raise ValueError(f"the audio has {rate} samples a second, but the model reads {extractor.sampling_rate}: resample it")
        most = extractor.n_samples
        if samples.size > most:
            seconds = math.ceil(samples.size / rate)
            raise ValueError(f"the audio has {seconds} s, but the model reads at most {most / rate:g} s (encoder_prompt): cut it")
        found = extractor(samples, sampling_rate=rate, return_tensors="np")
        return np.ascontiguousarray(found["input_features"][0], dtype=np.float32)

    @cached_property
    def _extractor(self) -> Any:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(self._folder)
