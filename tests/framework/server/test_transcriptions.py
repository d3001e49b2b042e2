"""Sound files that are written down: as transformers' ``generate`` does, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import transformers

from framework import AsyncEngine
from framework.engine.encoding import EncoderPrompts
from framework.engine.speech import Speech
from framework.server.config import ServerConfig

from .servers import HTTPServer, engine_config, serving

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("python_multipart")

SECONDS, BINS, RATE = 2, 20, 16000
TAGS = ("startoftranscript", "en", "de", "translate", "transcribe", "startofprev", "notimestamps")
TINY = Path(__file__).parents[3] / "framework" / "assets" / "tiny"


@dataclass
class Whisper:
    server: HTTPServer
    folder: Path
    library: Any
    tokenizer: Any
    extractor: Any

    def expected(self, samples: np.ndarray, prompt: str | None = None, **asked: Any) -> str:
        """The text by transformers."""
        features = self.extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        if prompt is not None:
            ids = self.tokenizer.encode("<|startofprev|> " + prompt, add_special_tokens=False)
            asked["prompt_ids"] = torch.tensor(ids)
        ids = self.library.generate(features, do_sample=False, **asked)[0].tolist()
        if prompt is not None and ids[: len(asked["prompt_ids"])] == asked["prompt_ids"].tolist():
            ids = ids[len(asked["prompt_ids"]) :]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def post(self, data: bytes | str | None, path: str = "transcriptions", **fields: str) -> tuple[int, Any]:
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        if isinstance(data, bytes):
            parts.append(b'name="file"; filename="a.wav"\r\n\r\n' + data)
        elif data is not None:
            parts.append(b'name="file"\r\n\r\n' + data.encode())
        body = b"".join(b"--border\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--border--\r\n"
        return self.server.request("POST", f"/v1/audio/{path}", body, {"content-type": "multipart/form-data; boundary=border"})


def waveform(seed: int, seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    times, rng = np.arange(int(rate * seconds)) / rate, np.random.default_rng(seed)
    tones = [np.sin(2 * np.pi * rng.uniform(100, 3000) * times) * rng.uniform(0.1, 0.3) for _ in range(3)]
    return sum(tones).astype(np.float32)


def file(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=format, subtype=subtype)
    return data.getvalue()


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whisper]:
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{tag}|>" for tag in TAGS]})
    tokenizer.save_pretrained(folder)
    ids = {tag: tokenizer.convert_tokens_to_ids(f"<|{tag}|>") for tag in TAGS}
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=80,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        max_source_positions=SECONDS * 50,
        max_target_positions=60,
        num_mel_bins=BINS,
        decoder_start_token_id=ids["startoftranscript"],
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    library: Any = transformers.WhisperForConditionalGeneration(config).eval()
    for name, weight in library.named_parameters():
        if weight.dim() > 1:
            inner = 1.0 if any(part in name for part in ("embed", "proj_out")) else 2.5
            weight.data.normal_(std=2.0 if "position" in name else inner * weight[0].numel() ** -0.5)
    settings = library.generation_config
    settings.lang_to_id = {"<|en|>": ids["en"], "<|de|>": ids["de"]}
    settings.task_to_id = {"transcribe": ids["transcribe"], "translate": ids["translate"]}
    settings.is_multilingual, settings.no_timestamps_token_id = True, ids["notimestamps"]
    settings.prev_sot_token_id, settings.forced_decoder_ids = ids["startofprev"], None
    settings.suppress_tokens, settings.begin_suppress_tokens = (
        [*range(100, 1100), *(ids[tag] for tag in TAGS if len(tag) > 2)],
        [1, 1500],
    )
    settings.decoder_start_token_id, settings.eos_token_id, settings.return_timestamps = ids["startoftranscript"], 1, False
    settings.max_length = 60
    library.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=BINS, chunk_length=SECONDS)
    extractor.save_pretrained(folder)
    engine = AsyncEngine(engine_config(name=str(folder), dtype="float32"))
    with serving(engine, ServerConfig(served_model_name=["whisper"], max_body_bytes=2**20)) as server:
        yield Whisper(server, folder, library, tokenizer, extractor)
    engine.shutdown()


def test_transcriptions_are_those_of_generate(whisper: Whisper) -> None:
    texts = set()
    for seed in (1, 2):
        samples = waveform(seed)
        data, asked = file(samples, subtype="FLOAT"), {"model": "whisper", "response_format": "json"}
        for language in ("en", "de"):
            status, found = whisper.post(data, language=language, **asked)
            assert status == 200, found
            assert found["text"] == whisper.expected(samples, language=language, task="transcribe")
            assert found["usage"] == {"type": "duration", "seconds": 2}
            texts.add(found["text"])
        status, found = whisper.post(data, "translations", **asked)
        assert status == 200 and found["text"] == whisper.expected(samples, task="translate"), "the language is heard"
        status, found = whisper.post(data, prompt="add two numbers", language="en", **asked)
        assert status == 200
        assert found["text"] == whisper.expected(samples, "add two numbers", language="en", task="transcribe")
        texts.add(found["text"])
    assert len(texts) > 4, "answers depend on sounds, languages and prompts"


def test_the_openai_client(whisper: Whisper) -> None:
    samples = waveform(1)
    data = file(samples, format="FLAC", subtype="PCM_24")
    read, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    with openai.OpenAI(base_url=f"{whisper.server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.audio.transcriptions.create(model="whisper", file=("a.flac", data), language="de", temperature=0)
        text: Any = client.audio.transcriptions.create(
            model="whisper", file=("a.flac", data), language="de", response_format="text"
        )
        translated = client.audio.translations.create(model="whisper", file=("a.flac", data))
        with pytest.raises(openai.BadRequestError, match="verbose_json is not available"):
            client.audio.transcriptions.create(model="whisper", file=("a.flac", data), response_format="verbose_json")
        with pytest.raises(openai.NotFoundError):
            client.audio.transcriptions.create(model="whisper-1", file=("a.flac", data))
    assert found.text == str(text) == whisper.expected(read, language="de", task="transcribe")
    assert translated.text == whisper.expected(read, task="translate")


def test_channels_and_rates_are_brought_to_the_models(whisper: Whisper) -> None:
    from framework.engine.sound import SoundFeatures

    for rate, format in ((8000, "WAV"), (44100, "FLAC"), (48000, "OGG"), (16000, "WAV")):
        samples = waveform(1, rate=rate)
        stereo = np.stack([samples, 0.5 * samples], axis=1)
        found = SoundFeatures(whisper.folder).decoded(file(stereo, rate, format))
        wanted = 0.75 * waveform(1)
        assert len(found) == len(wanted)
        inside = slice(RATE // 10, -RATE // 10)
        assert np.abs(found - wanted)[inside].max() < (0.1 if format == "OGG" else 2e-3), (rate, format)
        status, answer = whisper.post(file(stereo, rate, format), language="en")
        assert status == 200, answer


@pytest.mark.parametrize(
    ("data", "fields", "said"),
    [
        (b"", {}, "the file is empty"),
        (b"no sound", {}, "begins as none of WAV, FLAC, OGG"),
        (b"RIFF" + bytes(100), {}, "no sound that can be read"),
        (b"OggS" + bytes(100), {}, "no sound that can be read"),
        (b"fLaC" + bytes(100), {}, "no sound that can be read"),
        (None, {}, "file: Field required"),
        ("text", {}, "must be the upload of a file"),
        (file(np.zeros(0, np.float32)), {}, "no samples"),
        (file(np.zeros(RATE * SECONDS + 1, np.float32)), {}, "longer than the 2 s that the model reads"),
        (file(np.zeros(RATE * 500, np.float32), format="FLAC"), {}, "longer than the 2 s"),
        (file(np.zeros((9, 9), np.float32)), {}, "9 channels"),
        (file(np.zeros(9, np.float32), 400_000), {}, "400000 samples a second"),
        (file(np.full(99, np.nan, np.float32), subtype="FLOAT"), {}, "finite numbers"),
        (file(np.full(99, 1e30, np.float32), subtype="FLOAT"), {}, "numbers from -1 to 1; found one of 1e+30"),
        (file(waveform(1)), {"language": "xx"}, "language='xx' is none that the model knows: de, en"),
        (file(waveform(1)), {"temperature": "5"}, "temperature"),
        (file(waveform(1)), {"temperature": "warm"}, "temperature"),
        (file(waveform(1)), {"response_format": "srt"}, "srt is not available"),
        (file(waveform(1)), {"response_format": "xml"}, "response_format"),
        (file(waveform(1)), {"stream": "true"}, "`stream` is not supported"),
        (file(waveform(1)), {"timestamp_granularities[]": "word"}, "`timestamp_granularities` is not supported"),
        (file(waveform(1)), {"prompt": "a<|en|>"}, "without special tokens"),
        (file(waveform(1)), {"prompt": "word " * 9000}, "Please shorten"),
    ],
)
def test_what_cannot_be_heard_is_refused(whisper: Whisper, data: Any, fields: dict[str, str], said: str) -> None:
    status, found = whisper.post(data, **fields)
    assert status == 400 and said in found["error"]["message"], found


def test_bodies_that_are_no_forms_are_refused(whisper: Whisper) -> None:
    path, kind = "/v1/audio/transcriptions", {"content-type": "multipart/form-data; boundary=x"}
    for body, headers in (
        ({"file": "a"}, {}),
        (b"--x\r\ngarbage", kind),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", kind),
        (b"a", {"content-type": "multipart/form-data"}),
        (b"", kind),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + file(waveform(1)), kind),
    ):
        status, found = whisper.server.request("POST", path, body, headers)
        assert status == 400, found
    status, _ = whisper.post(bytes(2**20))
    assert status == 413
    assert whisper.post(file(waveform(1)), language="en")[0] == 200, "the server goes on"


def test_other_requests_of_a_model_that_listens_are_refused(whisper: Whisper) -> None:
    status, found = whisper.server.post("/v1/completions", model="whisper", prompt="a", max_tokens=2)
    assert status == 400 and "the model listens" in found["error"]["message"]
    messages = [{"role": "user", "content": "a"}]
    status, found = whisper.server.post("/v1/chat/completions", model="whisper", messages=messages, max_tokens=2)
    assert status == 400 and "encoder" in found["error"]["message"]


def test_a_model_that_reads_text_is_none_to_ask(server: HTTPServer) -> None:
    status, found = server.request("POST", "/v1/audio/transcriptions", b"", {"content-type": "multipart/form-data; boundary=x"})
    assert status == 501 and "it reads text" in found["error"]["message"]


@pytest.mark.parametrize("missing", ["soundfile", "soxr", "python_multipart"])
def test_without_the_extra_it_is_named(whisper: Whisper, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    from framework.server import transcriptions

    monkeypatch.setitem(sys.modules, missing, None)
    found_spec = importlib.util.find_spec
    monkeypatch.setattr(transcriptions, "find_spec", lambda name: None if name == missing else found_spec(name))
    status, found = whisper.post(file(waveform(1)))
    assert status == 501 and "kernelswap[audio]" in found["error"]["message"]


def test_decoders_of_sound_begin_as_generate_says() -> None:
    languages, tasks = {"en": 11, "de": 12}, {"transcribe": 21, "translate": 22}
    many = Speech(1, (None, 21), languages, tasks, no_timestamps=30)
    assert many.begin() == [1, None, 21, 30]
    assert many.begin("German", "translate") == [1, 12, 22, 30]
    assert many.begin("<|de|>") == [1, 12, 21, 30]
    assert many.begin(None, "translate") == [1, None, 22, 30]
    assert Speech(1, (12, 21, 30), languages, tasks, no_timestamps=30).begin() == [1, 12, 21, 30]
    one = Speech(1, (30,), no_timestamps=30)
    assert one.begin() == one.begin("en", "transcribe") == [1, 30]
    with pytest.raises(ValueError, match="cannot translate"):
        one.begin(None, "translate")
    with pytest.raises(ValueError, match="none that the model knows: en"):
        one.begin("de")
    prompts = EncoderPrompts(9, (1,), None, Speech(1, previous=40))
    assert prompts.begin() == [1]
    assert prompts.started([7]) == [1, 7] and prompts.started([1, 7]) == [1, 7] and prompts.started([40, 7, 1]) == [40, 7, 1]
