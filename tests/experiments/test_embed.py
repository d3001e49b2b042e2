"""Texts embedded beside transformers: the same vectors, whoever takes them in which order."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import transformers

from experiments import embed


def test_all_systems_embed_all_texts_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 2000}
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    texts = embed.random_texts(21, 5, 60, 2000, seed=1)
    assert len(texts) == 21 and {len(text) for text in texts} <= set(range(5, 61))
    given, padded = list(range(len(texts))), embed.padded_batches(model, 4)
    ours = embed.engine(tmp_path, argparse.Namespace(step_tokens=128, threads=1))
    systems = [
        embed.System("ours", ours, given),
        embed.System("given", padded, given),
        embed.System("sorted", padded, sorted(given, key=lambda i: len(texts[i]))),
    ]
    rows = embed.compare(systems, embed.measure(systems, texts, num_turns=3), texts)
    assert [row["system"] for row in rows] == ["ours", "given", "sorted"] and rows[0]["times"] == 1
    assert all(float(str(row["cosine"])) >= 1 - 1e-6 and float(str(row["seconds"])) > 0 for row in rows)
    assert capsys.readouterr().out.count("least cosine") == 3
