"""AutoRound (arXiv 2309.05516), by the library of its authors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..config import QuantConfig
from .calibration import draw_samples, load_tokenizer
from .formats import BITS
from .source import Source


def write_autoround(source: Source, folder: Path, config: QuantConfig, seed: int) -> None:
    """Writes a model into ``folder`` in AutoRound's own format. Raises ValueError where the library is missing."""
    try:
        from auto_round import AutoRound
    except ImportError as error:
        raise ValueError(f"autoround-int4 needs the library auto-round ({error}): pip install 'kernelswap[autoround]'") from error
    samples = draw_samples(source.folder, config, seed)
    on_gpu = torch.cuda.is_available()
    written = folder / "autoround"  # the library makes a folder of its own choice below the one it is given
    with torch.inference_mode(mode=False):
        AutoRound(
            str(source.folder),
            load_tokenizer(source.folder),
            scheme=f"W{BITS}A16",
            group_size=config.group_size,
            sym=config.is_symmetric,
            dataset=list(samples.split(1)),
            nsamples=len(samples),
            seqlen=samples.shape[1],
            device_map="cuda" if on_gpu else "cpu",
            enable_torch_compile=on_gpu,  # on a CPU compiling takes longer than it saves
            seed=seed,
        ).quantize_and_save(str(written), format="auto_round", max_shard_size="4GB")
    for path in [path for path in written.rglob("*") if path.is_file()]:
        path.rename(folder / path.name)
    shutil.rmtree(written)
