"""What users and files may get wrong about pooling, and parameters that say more than the model's default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from framework import PoolingParams, SamplingParams
from framework.config import ModelConfig
from framework.engine.inputs import InputProcessor
from framework.engine.pooling import PoolingInputs, PoolingRules
from framework.models.read import read_model
from framework.outputs import RequestOutput
from framework.pooling_outputs import vector

from .checkpoints import DECODER, PROMPTS, VOCAB, build, embeddings, encoded, save, states, tokens
from .test_encoders import BEHIND, SIZES
from .test_sentence_transformers import dense, embed, write
from .test_sentence_transformers import states as states_of_texts

BERT = {**SIZES, "model_type": "bert"}
WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]


def tokenizer(*input_names: str) -> transformers.PreTrainedTokenizerFast:
    """A word is a token; texts stand as BERT has them, and those of the second are of type 1."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_input_names=list(input_names)
    )


def inputs(**rules: Any) -> PoolingInputs:
    found = InputProcessor(tokenizer("input_ids", "token_type_ids"), {}, frozenset())
    return PoolingInputs(found, PoolingRules("embed", ("embed", "token_embed"), 8, **rules), 16)


@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("names", [("input_ids",), ("input_ids", "token_type_ids")])
def test_tokens_have_the_types_that_tokenizer_and_model_know(tmp_path: Path, types: int, names: tuple[str, ...]) -> None:
    """As transformers has it, a tokenizer gives types only if they are among its model's inputs."""
    config = transformers.BertConfig(**{**SIZES, "type_vocab_size": types, "num_labels": 1})
    model = save(tmp_path, "BertForSequenceClassification", config)
    of_words = tokenizer(*names)
    of_words.save_pretrained(tmp_path)
    llm = build(tmp_path, max_num_batched_tokens=200, skip_tokenizer=False)
    pairs = [("a b", "c"), ("a", ""), ("d e a b", "c c d")]
    for output, pair in zip(llm.score(*map(list, zip(*pairs)), use_tqdm=False), pairs, strict=True):
        given = of_words(*pair, return_tensors="pt")
        if types == 1:
            given.pop("token_type_ids", None)
        with torch.inference_mode():
            np.testing.assert_allclose(output.outputs.score, model(**given).logits.sigmoid().item(), atol=1e-5)


def test_prompts_given_as_dicts_are_checked() -> None:
    pooled = inputs()
    assert pooled.prompt({"prompt": "a b", "cache_salt": "x"}).token_ids == [1, 3, 4, 2]
    for wrong in ({"prompt": "a", "multi_modal_data": {}}, {"prompt": "a", "cache_salt": 5}, {"prompt": "a", "cache_salt": ""}):
        with pytest.raises(ValueError, match="a prompt's"):
            pooled.prompt(wrong)


def test_texts_are_cut_or_refused() -> None:
    pooled, params = inputs(), PoolingParams()
    assert pooled.prompt("a b c", 4).token_ids == [1, 3, 4, 2] and pooled.prompt([3, 4, 5], 2).token_ids == [3, 4]
    assert pooled.prompt("a b c", 2, special_tokens=False).token_ids == [3, 4]
    assert pooled.pair("a b", "c d", params, 5)[0].token_ids == [1, 3, 2, 5, 2]
    assert len(pooled.prompt("a " * 50, -1).token_ids) == 16 and len(inputs(max_whole=9).prompt("a " * 50, -1).token_ids) == 9
    for most in (17, 10**30):
        with pytest.raises(ValueError, match=f"truncate_prompt_tokens={most} cannot work: the model takes 16 tokens"):
            pooled.prompt("a", most)
    with pytest.raises(ValueError, match="truncate_prompt_tokens=1 cannot work: it leaves no room beside the special tokens"):
        pooled.prompt("a", 1)
    with pytest.raises(ValueError, match="truncate_prompt_tokens=2 cannot work"):
        pooled.pair("a", "b", params, 2)
    with pytest.raises(ValueError, match="prompt_name="):
        pooled.prompt("a", prompt_name=["x"])  # type: ignore[arg-type]
    for no_text in ([3, 4], {"prompt": "a", "prompt_token_ids": [3]}):
        with pytest.raises(ValueError, match="prompt_name='x' cannot work: it is for texts"):
            pooled.prompt(no_text, prompt_name="x")


def test_parameters_that_would_change_nothing_are_refused() -> None:
    rules = inputs().rules
    for params in (PoolingParams(returned_token_ids=[0]), PoolingParams(step_tag_id=3)):
        for task in ("embed", "token_embed"):
            with pytest.raises(ValueError, match="cannot work"):
                rules.complete(replace(params, task=task))
    classes = PoolingRules("classify", ("classify", "token_classify"), 8, num_labels=3, step_tag_id=5)
    assert classes.complete(PoolingParams(task="token_classify", returned_token_ids=[2])).step_tag_id == 5
    for task, ids in (("classify", [0]), ("token_classify", [3])):
        with pytest.raises(ValueError, match="returned_token_ids"):
            classes.complete(PoolingParams(task=task, returned_token_ids=ids))  # type: ignore[arg-type]


def test_what_is_no_parameters_or_no_texts(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3Model", transformers.Qwen3Config(**DECODER))
    llm: Any = build(tmp_path)
    for params in (SamplingParams(), {"dimensions": 3}, "x"):
        with pytest.raises(ValueError, match="must be PoolingParams"):
            llm.embed(tokens(), pooling_params=params)
    for sides in ((None, "b"), ("a", 5), ({"a": 1}, "b"), ([], "b"), ([1], "b")):
        with pytest.raises(ValueError, match="must be a text or a list of texts"):
            llm.score(*sides)
    llm.engine.add_request("a", [1, 2], PoolingParams())
    (aborted,) = llm.engine.abort(["a"])
    assert isinstance(aborted, RequestOutput)
    with pytest.raises(RuntimeError, match="'a' was aborted"):
        vector(aborted)
    assert len(embeddings(llm)) == len(PROMPTS)


def test_what_a_request_asks_for_goes_before_what_the_model_would_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", ("Pooling", {"pooling_mode": "mean"}))
    for params, wanted in ((None, None), (PoolingParams(use_activation=True), 1.0)):
        (found,), (x,) = embed(folder, ["def f"], pooling_params=params), states_of_texts(["def f"])
        np.testing.assert_allclose(np.linalg.norm(found), wanted or np.linalg.norm(x.mean(0)), rtol=1e-4)
    save(tmp_path / "c", "Qwen3ForSequenceClassification", transformers.Qwen3Config(**DECODER, num_labels=3))
    llm = build(tmp_path / "c", pooler={"use_activation": False})
    raw, probs = (encoded(llm, pooling_params=params) for params in (None, PoolingParams(use_activation=True)))
    for a, b in zip(raw, probs):
        np.testing.assert_allclose(np.exp(a) / np.exp(a).sum(), b, atol=1e-6)
        assert abs(a.sum() - 1) > 1e-3


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        ({}, 1, "sigmoid"),
        ({}, 3, "softmax"),
        ({"problem_type": "single_label_classification"}, 1, "sigmoid"),
        ({"problem_type": "single_label_classification"}, 3, "softmax"),
        ({"problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({"problem_type": "regression"}, 1, "identity"),
        ({"problem_type": ["regression"]}, 1, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, 3, "sigmoid"),
    ],
)
def test_what_makes_probabilities_of_scores(given: dict[str, Any], classes: int, expected: str) -> None:
    config = {**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": classes, **given}
    pooling = read_model(ModelConfig(load_format="dummy", architecture=config, skip_tokenizer=True)).pooling
    assert pooling is not None and pooling.activation == expected


POOLING = ("Pooling", {"pooling_mode": "mean"})
FILES: list[tuple[str, str, str]] = [
    ("modules.json", "[{", "modules.json is no JSON"),
    ("modules.json", '{"a": 1}', "expected a list of objects"),
    ("modules.json", '["Pooling"]', "expected a list of objects"),
    ("modules.json", "[" * 100_000, "modules.json is no JSON: maximum recursion depth"),
    ("modules.json", '[{"type": "Pooling", "path": null}]', "path=None must be text"),
    ("2_Dense/config.json", '{"in_features": 256, "out_features": 32, "bias": "false"}', "bias='false' must be true or false"),
    ("sentence_bert_config.json", '{"do_lower_case": "false"}', "do_lower_case='false' must be true or false"),
    ("config_sentence_transformers.json", '{"prompts": {"a": "b"}, "default_prompt_name": "c"}', "'c' is none of the prompts, a"),
    ("1_Pooling/config.json", '{"pooling_mode": 5}', "pooling by 5"),
    ("1_Pooling/config.json", '{"pooling_mode": [5, ["mean"]]}', "pooling by 5 and"),
    ("2_Dense/config.json", '{"in_features": 256}', "out_features=None must be a positive integer"),
    ("2_Dense/config.json", '{"in_features": 256, "out_features": -1}', "out_features=-1 must be"),
    ("2_Dense/config.json", '{"in_features": 256, "out_features": "8"}', "out_features='8' must be"),
    ("sentence_bert_config.json", '{"max_seq_length": "x"}', "max_seq_length='x' must be a positive integer"),
    ("sentence_bert_config.json", '{"max_seq_length": -5}', "max_seq_length=-5 must be a positive integer"),
    ("config_sentence_transformers.json", '{"prompts": [1]}', "must be texts by their names"),
    ("config_sentence_transformers.json", '{"prompts": {"a": null}}', "must be texts by their names"),
]


@pytest.mark.parametrize(("name", "text", "said"), FILES)
def test_files_that_are_malformed_are_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = write(tmp_path / "m", POOLING, dense(32, 256, "Tanh"))
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_model(ModelConfig(str(folder)))


@pytest.mark.parametrize(
    "given",
    [
        {"matryoshka_dimensions": 5},
        {"matryoshka_dimensions": [0]},
        {"id2label": ["a"]},
        {"id2label": {"x": "a"}},
        {"num_labels": "3"},
        {"num_labels": -1},
        {"classifier_from_token": 5},
        {"classifier_from_token": [1, "a"]},
        {"sentence_transformers": {"activation_fn": 5}},
        {"step_tag_id": "x"},
        {"architectures": "BertModel"},
    ],
)
def test_a_config_that_is_malformed_is_told(given: dict[str, Any]) -> None:
    config = {**BERT, "architectures": ["BertForSequenceClassification"], **given}
    with pytest.raises(ValueError, match=r"config\.json(: | \(or model\.architecture\) has )"):
        read_model(ModelConfig(load_format="dummy", architecture=config, skip_tokenizer=True))


def test_answers_and_classes_that_the_model_has_not(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3ForCausalLM", transformers.Qwen3Config(**DECODER))
    for ids in ([1, VOCAB], [-1, 2]):
        with pytest.raises(ValueError, match=f"but ids are 0 to {VOCAB - 1}"):
            build(tmp_path, architecture={"classifier_from_token": ids})
    for pooler, said in (
        ({"returned_token_ids": [0]}, "the model has 0 classes"),
        ({"returned_token_ids": [-1]}, r"model\.pooler\.returned_token_ids=\[-1\] cannot work"),
        ({"returned_token_ids": []}, r"model\.pooler\.returned_token_ids=\[\] cannot work"),
        ({"pooling_type": "STEP", "step_tag_id": -5}, r"model\.pooler\.step_tag_id=-5 cannot work"),
        ({"step_tag_id": "a"}, r"model\.pooler\.step_tag_id='a' cannot work"),
        ({"use_activation": "false"}, r"model\.pooler\.use_activation='false' cannot work"),
    ):
        with pytest.raises(ValueError, match=said):
            build(tmp_path, runner="pooling", pooler=pooler)


def test_a_single_token_is_embedded_alone_as_among_others(tmp_path: Path) -> None:
    """With the kernels that an engine takes by itself, to the bit."""
    config = {**SIZES, "hidden_size": 256, "bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
    save(tmp_path, "ModernBertModel", transformers.ModernBertConfig(**config))
    llm = build(tmp_path, max_num_batched_tokens=200)
    prompts = [[7], [9], [8, 9], *PROMPTS]
    for prompt, among in zip(prompts, embeddings(llm, prompts)):
        assert np.array_equal(embeddings(llm, [prompt])[0], among)


def test_times_of_pooling_requests_are_counted(tmp_path: Path) -> None:
    model = save(tmp_path, "RobertaModel", transformers.RobertaConfig(**BEHIND))
    llm = build(tmp_path, max_num_batched_tokens=200)
    for found, expected in zip(embeddings(llm), states(model)):
        np.testing.assert_allclose(found, expected[0] / np.linalg.norm(expected[0]), atol=1e-5)
    histograms = llm.engine.metrics().histograms
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prompt_tokens",
    ):
        assert histograms[name].counts.sum() == len(PROMPTS), name
    assert histograms["request_prompt_tokens"].total == sum(map(len, PROMPTS))
    assert histograms["request_generation_tokens"].total == histograms["request_decode_time_seconds"].total == 0
