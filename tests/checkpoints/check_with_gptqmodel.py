"""Holds the GPTQ and AWQ exports of other tools against GPTQModel's loader, in the environment of make_gptqmodel.py."""

from __future__ import annotations

import json

import make_gptqmodel
import recording
import reference
from safetensors.numpy import load_file

for name in recording.wanted(["ar_gptq", "ar_awq", "awq"]):
    folder = recording.HERE / name
    found, path = make_gptqmodel.own_logits(folder)
    difference = reference.error(found, load_file(folder / "expected.safetensors")["logits"])
    meta = json.loads((folder / "meta.json").read_text())
    meta["gptqmodel_loader"] = {"path": path, "relative_difference": {"logits": difference}}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"CHECKED {name}: {difference}")
