"""Images in conversations: what LLM gives, hosts that are trusted, and URLs that somebody made to do harm."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from framework import LLM, AsyncEngine, SamplingParams
from framework.server import image_urls
from framework.server.config import ServerConfig
from framework.server.image_urls import ImageURLs, is_public
from framework.study.compose import LoadConfig
from framework.study.load.bodies import body
from framework.study.load.config import HttpConfig
from framework.study.load.driver import HttpRecord
from framework.study.load.run import load
from framework.study.workload import SentPictures, WorkloadConfig, build_workload

from ..multimodal.checkpoints import make, picture
from ..multimodal.test_serving import animated, url
from .servers import HTTPServer, engine_config, serving

TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
TEXT = {"type": "text", "text": "what is <image>?"}


@contextmanager
def images_host(answer: Any) -> Iterator[int]:
    """A server of images: its port. answer(handler): writes what comes of a GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    try:
        yield host.server_address[1]
    finally:
        host.shutdown()
        host.server_close()


def png() -> bytes:
    data = io.BytesIO()
    picture(1).save(data, "PNG")
    return data.getvalue()


def give(data: bytes, status: int = 200) -> Any:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", "http://localhost/secret")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def of_header(width: int, height: int) -> str:
    """A PNG of that size, by its header alone."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\1IDAT").decode()


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HTTPServer, LLM]]:
    folder: Path = tmp_path_factory.mktemp("llava")
    make("llava", folder)
    config = engine_config(name=str(folder), dtype="float32")
    engine = AsyncEngine(config)
    given = ServerConfig(served_model_name=["llava"], chat_template=TEMPLATE, allowed_image_hosts=["localhost"], max_num_images=2)
    with serving(engine, given) as server:
        yield server, LLM(config)
    engine.shutdown()


def part(given: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": given}}


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_conversation_with_an_image(llava: tuple[HTTPServer, LLM]) -> None:
    server, offline = llava
    expected = offline.chat(
        message({"type": "image", "image": picture(1)}, TEXT),
        SamplingParams(temperature=0, max_tokens=6),
        chat_template=TEMPLATE,
        use_tqdm=False,
    )[0]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = message(part(url(picture(1))), TEXT)
        found = client.chat.completions.create(model="llava", messages=messages, temperature=0, max_tokens=6)
        items: Any = message({"type": "input_image", "image_url": url(picture(1))}, {"type": "input_text", "text": TEXT["text"]})
        response = client.responses.create(model="llava", input=items, temperature=0, max_output_tokens=6)
    assert found.choices[0].message.content == response.output_text == expected.outputs[0].text
    assert found.usage is not None and expected.prompt_token_ids is not None
    assert found.usage.prompt_tokens == len(expected.prompt_token_ids) == 32
    status, body = server.post("/tokenize", model="llava", messages=message(part(url(picture(1))), TEXT))
    assert status == 200 and body["tokens"] == expected.prompt_token_ids


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_whoever_shows_an_image_it_is_seen(role: str, llava: tuple[HTTPServer, LLM]) -> None:
    """Whatever its type is said to be; and what others spell is text."""
    server, _ = llava
    shown = [part(url(picture(1)).replace("image/png", "image/jpeg")), TEXT]
    others = [{"role": "user", "content": "an <image>"}, {"role": "user", "content": [TEXT]}]
    status, body = server.post("/tokenize", model="llava", messages=[{"role": role, "content": shown}, *others])
    assert status == 200 and body["tokens"].count(258) == 16, body


@pytest.mark.parametrize("content", ["hello", [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]])
def test_a_template_of_parts_is_given_parts_where_there_is_text_alone(content: Any, llava: tuple[HTTPServer, LLM]) -> None:
    """Also one that the model does not bring itself."""
    server, offline = llava
    status, body = server.post("/tokenize", model="llava", messages=[{"role": "user", "content": content}])
    text = content if isinstance(content, str) else "hel\nlo"
    assert status == 200 and body["tokens"] == offline.get_tokenizer().encode(text)
    messages: Any = [{"role": "user", "content": text}]
    assert offline.chat(messages, chat_template=TEMPLATE, use_tqdm=False)[0].prompt_token_ids == body["tokens"]


def test_an_image_is_fetched_from_a_host_that_is_trusted(llava: tuple[HTTPServer, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = llava
    asked = {"model": "llava", "temperature": 0, "max_tokens": 6}
    with images_host(give(png())) as port:
        there = message(part(f"http://localhost:{port}/cat.png?size=2"), TEXT)
        status, body = server.post("/v1/chat/completions", messages=there, **asked)
        assert status == 400 and "only public addresses" in body["error"]["message"]
        monkeypatch.setattr(image_urls, "is_public", lambda address: True)
        status, body = server.post("/v1/chat/completions", messages=there, **asked)
        assert status == 200, body
    _, same = server.post("/v1/chat/completions", messages=message(part(url(picture(1))), TEXT), **asked)
    assert body["choices"][0]["message"] == same["choices"][0]["message"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part("http://example.com/cat.png")], "not fetched from 'example.com': a client may name localhost"),
        ([part("http://localhost@example.com/cat.png")], "not fetched from 'example.com'"),
        ([part("http://me:secret@localhost/cat.png")], "without a user's name"),
        ([part("http://[::1/cat.png")], "cannot be read"),
        ([part("http://localhost:99999/cat.png")], "cannot be read"),
        ([part("http://localhost/a\r\nX: y")], "plain ASCII"),
        ([part("HTTP://2130706433/cat.png")], "not fetched from '2130706433'"),
        ([part("http://[::ffff:7f00:1]/cat.png")], "not fetched from '::ffff:7f00:1'"),
        ([part("http://localhost\\\\@example.com/")], "not fetched from"),
        ([part("data:image/png;base64,")], "no image that Pillow can open"),
        ([part("data:image/png;base64,aGVsbG8")], "holds no base64"),
        ([part("data:image/svg+xml;utf8,<svg/>")], "must be in base64"),
        ([part("data:text/html;base64,aGVsbG8=")], "must be a URL of the form data:image/"),
        ([part(url(picture(1, 300, 300))[:-9000])], "cannot be read"),
        ([part(url(picture(1, 20000, 1)))], "one side may be 200 times"),
        ([part(of_header(50_000, 50_000))], "exceeds limit of"),
        ([part(of_header(10_000, 9_000))], "must have from 1 to 89478485 pixels"),
        ([part("file:///etc/passwd")], "must be a URL of the form data:image/"),
        ([part("data:image/png;base64,aGVsbG8=")], "no image that Pillow can open"),
        ([part(url(animated(), "GIF", save_all=True))], "2 pictures cannot work"),
        ([part(url(picture(1), "TIFF"))], "formats: PNG, JPEG, WEBP, GIF, BMP"),
        ([part(url(picture(1), "EPS").replace("eps", "png", 1))], "formats: PNG, JPEG, WEBP, GIF, BMP"),
        ([part(5)], "must be a URL"),
        ([part(url(picture(1)))] * 3, "3 images are more than the 2"),
        ([{"type": "video_url", "video_url": {"url": "data:"}}], "content of type 'video_url' is not supported"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused(parts: list[Any], said: str, llava: tuple[HTTPServer, LLM]) -> None:
    server, _ = llava
    status, body = server.post("/v1/chat/completions", model="llava", messages=message(*parts, TEXT), max_tokens=1)
    assert status == 400 and said in body["error"]["message"] and body["error"]["param"] == "messages", body


def test_a_host_that_misbehaves_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "is_public", lambda address: True)
    urls = ImageURLs(["localhost"], 1000, 20.0)
    for answer, said in (
        (give(b"", 302), "answers 302.*redirects are not followed"),
        (give(b"x" * 1001), "longer than the 1000 bytes"),
        (give(b"hello"), "no image that Pillow can open"),
    ):
        with images_host(answer) as port, pytest.raises(ValueError, match=said):
            urls.load(f"http://localhost:{port}/")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ValueError, match="cannot be fetched from localhost: ConnectionRefusedError"):
        urls.load(f"http://localhost:{port}/")


def test_a_host_that_gives_byte_after_byte_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "is_public", lambda address: True)
    left = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            while not left.wait(0.02):
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
        except OSError:
            left.set()

    with images_host(drip) as port, pytest.raises(ValueError, match="cannot be fetched from localhost"):
        try:
            ImageURLs(["localhost"], 1000, 0.5).load(f"http://localhost:{port}/")
        finally:
            left.set()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "0.0.0.0", "100.64.0.1")),
        *((address, False) for address in ("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "224.0.0.1", "240.0.0.1")),
        *((address, False) for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "255.255.255.255", "fec0::1", "::127.0.0.1")),
    ],
)
def test_which_addresses_are_public(address: str, found: bool) -> None:
    assert is_public(address) == found


def test_a_load_with_images(llava: tuple[HTTPServer, LLM]) -> None:
    """Tokens are those of the same conversations offline; the server says how often it had an image already."""
    server, llm = llava
    tokenizer = llm.get_tokenizer()
    images = {"num_images": 2, "image_width": 40, "image_height": 30, "num_distinct_images": 3}
    sizes = {"prompt_tokens": 12, "output_tokens": 3, "output_spread": 0}
    asked = WorkloadConfig(source="python", num_requests=6, rate=200, **sizes, **images)
    http = HttpConfig(server.url, "/v1/chat/completions", prompts="text", timeout_s=60)
    config = LoadConfig(workload=asked, http=http, num_warmup_requests=0)
    served = load(config, llm.engine.executor.vocab_size, tokenizer, progress=False)
    metrics = served.metrics(config)
    assert (metrics["num_completed"], metrics["num_images"]) == (6, 12), [record.error for record in served.record.requests]
    workload = build_workload(asked, 1, tokenizer.encode, SentPictures(asked))
    assert metrics["num_images_encoded"] == 3 and 0.5 < metrics["encoder_hit_rate"] < 1
    assert "num_image_tokens" not in metrics, "which the server does not tell"
    for request, record in zip(workload, served.record.requests):
        parts = json.loads(body(request, http, "llava", tokenizer))["messages"][0]["content"]
        before = ["".join(p.get("text", "") for p in parts[:i]) for i, p in enumerate(parts) if p["type"] == "image_url"]
        ends = [*(image.start for image in request.sent_images), len(request.prompt_token_ids)]
        whole = "".join(p.get("text", "") for p in parts)
        assert [*before, whole] == [tokenizer.decode(request.prompt_token_ids[:end]) for end in ends]
        shown = [{"type": "image", "image": opened(p["image_url"]["url"])} if p["type"] == "image_url" else p for p in parts]
        output = llm.chat(message(*shown), request.sampling, chat_template=TEMPLATE, use_tqdm=False)[0]
        assert isinstance(record, HttpRecord) and list(record.token_ids) == list(output.outputs[0].token_ids)
        assert record.num_prompt_tokens == len(output.prompt_token_ids or ())


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
