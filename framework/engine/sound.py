"""Sound in prompts: from a file to a waveform, and from that to what an encoder reads."""

from __future__ import annotations

import io
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

_BEGINNINGS = {"WAV": b"RIFF", "FLAC": b"fLaC", "OGG": b"OggS"}
"""Of files that are opened: libsndfile knows more formats, of which most are rare."""
_MAX_CHANNELS, _MAX_RATE = 8, 192_000
_BLOCK = 2**16
"""Samples that are decoded at a time."""


class SoundFeatures:
    """The library's feature extractor of the model in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, sound: Any) -> np.ndarray:
        """sound: (waveform [samples], sampling rate in Hz) -> float32 [bins, frames]. Raises ValueError for what is none, for
        another rate than the model's, for more seconds than it reads, and for numbers whose squares are too large."""
        try:
            waveform, rate = sound
            samples = np.asarray(waveform, dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"audio must be (waveform, sampling rate in Hz); found {type(sound).__name__}") from None
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise ValueError(f"an audio waveform must be finite numbers of one channel; found an array of shape {samples.shape}")
        if rate != self.rate:
            raise ValueError(f"the audio has {rate} samples a second, but the model reads {self.rate}: resample it")
        if samples.size > self.most:
            seconds = math.ceil(samples.size / rate)
            raise ValueError(
                f"the audio has {seconds} s, but the model reads at most {self.most / rate:g} s (encoder_prompt): cut it"
            )
        found = self._extractor(samples, sampling_rate=rate, return_tensors="np")
        features = np.ascontiguousarray(found["input_features"][0], dtype=np.float32)
        if not np.isfinite(features).all():
            raise ValueError(f"an audio waveform has numbers from -1 to 1; found one of {np.abs(samples).max():g}: scale it")
        return features

    @property
    def rate(self) -> int:
        """Samples a second that the model reads."""
        return self._extractor.sampling_rate

    @property
    def most(self) -> int:
        """Samples that it reads in all."""
        return self._extractor.n_samples

    def decoded(self, data: bytes) -> np.ndarray:
        """A file -> its waveform at the model's rate, channels as their mean, float32 [samples]. Needs soundfile and soxr. Raises
        ValueError for what is no sound, and for more seconds than the model reads; NotImplementedError without the two."""
        try:
            import soundfile
            import soxr
        except ImportError as error:
            raise NotImplementedError(
                f"sound files need {error.name}, which is not installed: pip install 'kernelswap[audio]'"
            ) from None
        if not data:
            raise ValueError("the file is empty")
        if not data.startswith(tuple(_BEGINNINGS.values())):
            raise ValueError(f"the file is no sound that is read here: it begins as none of {', '.join(_BEGINNINGS)} does")
        most_s = self.most / self.rate
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                rate, channels = file.samplerate, file.channels
                if channels > _MAX_CHANNELS or rate > _MAX_RATE:
                    raise ValueError(
                        f"the sound has {channels} channels of {rate} samples a second; at most {_MAX_CHANNELS} of {_MAX_RATE} "
                        "are read"
                    )
                most = int(most_s * rate)
                blocks = [block.mean(axis=1) for block in file.blocks(_BLOCK, frames=most + 1, dtype="float32", always_2d=True)]
        except soundfile.SoundFileError as error:
            raise ValueError(f"the file is no sound that can be read: {str(error)[:200]}") from None
        if not sum(map(len, blocks)):
            raise ValueError("the file holds no sound: it has no samples")
        waveform = np.concatenate(blocks)
        if len(waveform) > most:
            raise ValueError(f"the sound is longer than the {most_s:g} s that the model reads: cut it into parts")
        return soxr.resample(waveform, rate, self.rate)[: self.most]

    @cached_property
    def _extractor(self) -> Any:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(self._folder)
