"""Quality beside speed: runs of the quality study joined to serving runs of the same configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sweep import setting_columns, value_text

if TYPE_CHECKING:
    import pandas as pd

QUALITY_KEY = "window_tokens"
"""A setting that every run of the quality study has, and no other."""
_BEARING = ("model.", "quant.", "choice.", "cache.dtype", "plugins")
_NOT_BEARING = (
    *(f"model.{key}" for key in ("generation_config", "skip_tokenizer", "max_logprobs", "limit_mm_per_prompt")),
    *(f"choice.{op}" for op in ("apply_penalties", "sample", "gather_logprobs", "filter_logits", "verify_draft", "copy_blocks")),
)


def is_quality(runs: pd.DataFrame) -> pd.Series:
    """Which rows are of the quality study, finished or failed."""
    return runs.reindex(columns=[QUALITY_KEY])[QUALITY_KEY].notna()


def join_quality(runs: pd.DataFrame) -> pd.DataFrame:
    """The serving runs of a table, each with the metrics that only the quality runs have, of the one with its configuration: of its
    model, quantization, cache dtype and kernels up to the logits. The cells stay empty where there is none; of repeats the last
    counts.

    Raises ValueError if there are no runs of one kind, none match, or quality runs of one configuration differ in what they
    measured."""
    ours = is_quality(runs)
    serving, quality = runs[~ours], runs[ours & (runs["status"] == "ok")]
    for table, script in ((serving, "serve.py"), (quality, "quality.py")):
        if table.empty:
            raise ValueError(f"there is no run of experiments/{script} to join: give the folders of both studies")
    configurations = _configurations(runs)
    found: dict[tuple[str, ...], pd.Series] = {}
    for key, group in quality.groupby(configurations.loc[quality.index].agg(tuple, axis=1), sort=False):
        if differing := [c for c in setting_columns(group) if not c.startswith(_BEARING)]:
            raise ValueError(
                f"quality runs of one configuration differ in {', '.join(differing)}: join only one kind of them, by folder"
            )
        found[key] = group.iloc[-1]
    joined, keys = serving.copy(), configurations.loc[serving.index].agg(tuple, axis=1)
    if not any(key in found for key in keys):
        nearest = _nearest(configurations.loc[serving.index[0]], configurations.loc[quality.index])
        raise ValueError(f"no quality run has the configuration of a serving run; the nearest differ in {nearest}")
    for column in runs.columns[runs.columns.str.startswith("metric.")]:
        if serving[column].isna().all():
            joined[column] = [found[key][column] if key in found else None for key in keys]
    return joined.infer_objects()


def _configurations(runs: pd.DataFrame) -> pd.DataFrame:
    """What bears on the logits of each run, as text. An op without a choice of its own has the default's."""
    import pandas as pd

    default = runs.reindex(columns=["choice.default"])["choice.default"].fillna("auto")
    columns = {"choice.default": default}
    for column in runs.columns:
        if column.startswith(_BEARING) and column not in _NOT_BEARING:
            columns[column] = runs[column].fillna(default) if column.startswith("choice.") else runs[column]
    return pd.DataFrame({column: values.map(value_text) for column, values in columns.items()})


def _nearest(wanted: pd.Series, found: pd.DataFrame) -> str:
    """In what the nearest of ``found`` differs: "quant.scheme (int8, fp8)"."""
    nearest = found.iloc[int((found != wanted).sum(axis=1).argmin())]
    return ", ".join(f"{c} ({ours}, {theirs})" for c, ours, theirs in zip(found.columns, wanted, nearest) if ours != theirs)
