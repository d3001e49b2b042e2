"""The shipped models: layout, size, tokenizer, quality on held-out source, and how they are made."""

import math
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.tiny.data import WindowStream
from experiments.tiny.evaluate import closed_lines, scored_windows
from experiments.tiny.muon import orthogonalize
from framework.corpus import SourceFile, is_heldout

ASSETS = Path(__file__).resolve().parents[1] / "framework" / "assets"
NAMES = ("tiny", "tiny-draft")
HELDOUT_MODULES = ("json/decoder.py", "unittest/suite.py", "fileinput.py")
HEADS = ("tiny-medusa", "tiny-eagle3", "tiny-mtp")
SIZE_LIMIT = 16 * 2**20
CONTEXT = 1024


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    """Name, model and tokenizer as a user of transformers loads them."""
    folder = ASSETS / request.param
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return request.param, model, AutoTokenizer.from_pretrained(folder)


def stdlib_file(name):
    return SourceFile(name, (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8"))


def test_layout_and_size():
    for name in NAMES:
        present = {path.name for path in (ASSETS / name).iterdir()}
        assert present == {
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
    for name in HEADS:
        assert {path.name for path in (ASSETS / name).iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= SIZE_LIMIT


def test_both_models_share_one_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (ASSETS / "tiny" / name).read_bytes() == (ASSETS / "tiny-draft" / name).read_bytes()


def test_model_and_tokenizer_agree(loaded):
    _, model, tokenizer = loaded
    assert tokenizer.is_fast
    assert model.config.model_type == "llama"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.bos_token_id == model.generation_config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_tokenizer_round_trip(loaded):
    _, _, tokenizer = loaded
    text = "def f(x):\n\tif x:  # é ☃\n        return 'a' + \"b\"\n\n\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_newline_prompt_is_a_token_prefix(loaded):
    _, _, tokenizer = loaded
    head = tokenizer("def f(x):\n").input_ids
    assert tokenizer("def f(x):\n    return x\n").input_ids[: len(head)] == head


def test_chat_template(loaded):
    _, _, tokenizer = loaded
    chat = [
        {"role": "user", "content": "Read a file.\nReturn lines."},
        {"role": "assistant", "content": "pass"},
        {"role": "user", "content": "Again."},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|># Read a file.\n# Return lines.\npass\n\n# Again.\n"


@torch.inference_mode()
def test_heldout_bits_per_byte(loaded):
    name, model, tokenizer = loaded
    nats = size = 0
    for module in HELDOUT_MODULES:
        file = stdlib_file(module)
        assert is_heldout(file, percent=5)
        size += file.size
        for window, first in scored_windows(tokenizer(file.text).input_ids, CONTEXT):
            logits = model(window[:, :-1]).logits[0, first - 1 :]
            nats += F.cross_entropy(logits, window[0, first:], reduction="sum").item()
    assert nats / math.log(2) / size < {"tiny": 1.3, "tiny-draft": 1.9}[name]


@torch.inference_mode()
def test_greedy_continuation_is_not_degenerate():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    prompt = tokenizer("class Reader:\n    def __init__(self, path):\n", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    new = output[0, prompt.input_ids.shape[1] :].tolist()
    assert len(set(new)) >= 12
    assert "self" in tokenizer.decode(new)


@torch.inference_mode()
def test_draft_often_agrees_with_main():
    tokens = AutoTokenizer.from_pretrained(ASSETS / "tiny")(stdlib_file("fileinput.py").text).input_ids
    window = torch.tensor([tokens[:CONTEXT]])
    models = [AutoModelForCausalLM.from_pretrained(ASSETS / name, dtype=torch.float32) for name in NAMES]
    main, draft = (model(window).logits.argmax(-1) for model in models)
    assert (main == draft).float().mean() > 0.4


def test_window_stream_resumes_with_the_same_order():
    documents = [np.arange(start, start + 40, dtype=np.uint16) for start in range(0, 400, 40)]

    def stream():
        return WindowStream(documents, [False] * 9 + [True], generated_share=0.5, seed=3)

    whole, first, second = stream(), stream(), stream()
    expected = [whole.next_batch(16, 4) for _ in range(20)]
    for batch in expected[:7]:
        assert torch.equal(first.next_batch(16, 4), batch)
    second.load_state_dict(first.state_dict())
    for batch in expected[7:]:
        assert torch.equal(second.next_batch(16, 4), batch)


@pytest.mark.parametrize("length", [2, 9, 10, 30])
def test_scored_windows_score_every_target_once(length):
    tokens = list(range(length))
    targets = [int(t) for window, first in scored_windows(tokens, 8) for t in window[0, first:]]
    assert targets == tokens[1:]


@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (8, 8)])
def test_orthogonalize(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, *shape)))
    assert values.min() > 0.3
    assert values.max() < 1.6


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x = [1]\nun'finished", 1),
        ("y = 1\nx = [1,\n     2,\n", 1),
        ('def f():\n    """Doc\n', 1),
        ('"""Doc\n', 0),
        ("x = [1)\n", None),
        ("x = 1)\n", None),
        ("x = 'a\n", None),
        ("if x:\n        a\n    b\n", None),
    ],
)
def test_tokenizability_rule(text, lines):
    assert closed_lines(text) == lines
