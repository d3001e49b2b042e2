"""The page at /, in headless Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

import pytest

from .browser import Page, find_chromium, open_page
from .servers import HTTPServer

Steps = Callable[[Page], Awaitable[None]]


def test_the_page_needs_nothing_from_elsewhere(server: HTTPServer) -> None:
    status, text = server.request("GET", "/")
    assert status == 200 and text == (files("framework.server") / "page" / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|<script src|<link rel=.stylesheet", text)


def test_what_the_page_shows_is_what_the_engine_did(server: HTTPServer) -> None:
    _, before = server.request("GET", "/live")
    server.post("/v1/completions", prompt=[50] * 33, max_tokens=5, ignore_eos=True)
    status, after = server.request("GET", "/live")
    assert status == 200
    assert after["prompt_tokens"] - before["prompt_tokens"] == 33 and after["generation_tokens"] - before["generation_tokens"] == 5
    assert after["num_finished"] - before["num_finished"] == 1 and after["uptime_s"] > before["uptime_s"]
    assert (after["num_running"], after["num_waiting"], after["num_blocks_used"], after["num_blocks"]) == (0, 0, 0, 511)
    assert 0 < after["ttft_s"] < 10 and 0 < after["tpot_s"] < 10
    assert after["model"] == "tiny" and after["plan"]["linear"]["impl"]


def test_what_the_page_shows_of_requests_that_run(server: HTTPServer) -> None:
    with server.open("/v1/completions", prompt=[50] * 33, n=3, max_tokens=1000, ignore_eos=True, stream=True) as connection:
        received = b""
        while any(b'"index":%d' % i not in received for i in range(3)):  # each of the three has begun
            received += (more := connection.recv(4096))
            assert more
        state = server.request("GET", "/live")[1]
    assert (state["num_running"], state["num_waiting"]) == (3, 0) and state["num_blocks_used"] >= 3


@pytest.fixture
def browse(server: HTTPServer, tmp_path: Path) -> Callable[[Steps], None]:
    """Takes steps on the page, in a browser."""
    if (chromium := find_chromium()) is None:
        pytest.skip("no Chromium was found: install one, or name it in CHROMIUM")

    async def take(steps: Steps) -> None:
        async with open_page(chromium, f"{server.url}/", tmp_path) as page:
            await page.wait_for("document.getElementById('state').textContent == 'live'")
            await steps(page)

    return lambda steps: asyncio.run(take(steps))


def test_the_page_in_a_browser(browse: Callable[[Steps], None]) -> None:
    async def steps(page: Page) -> None:
        assert await page.evaluate("document.getElementById('model').textContent") == "tiny"
        assert await page.evaluate("document.querySelectorAll('#kernels tr').length") > 5
        finished = await shown(page, "finished")
        await page.evaluate(
            "document.getElementById('prompt').value = 'import os<b>';document.getElementById('form').requestSubmit()"
        )
        await page.wait_for("!document.querySelector('button').disabled")
        assert await page.evaluate("document.querySelector('#chat .user').textContent") == "import os<b>"
        assert await page.evaluate("document.querySelector('#chat .answer').textContent")
        async with asyncio.timeout(60):
            while await shown(page, "finished") != finished + 1:  # it updates by itself
                await asyncio.sleep(0.1)
        assert page.errors == []

    browse(steps)


def test_the_page_tells_when_the_server_is_gone_and_shows_errors_of_the_api(browse: Callable[[Steps], None]) -> None:
    async def steps(page: Page) -> None:
        await page.evaluate("document.getElementById('prompt').value = 'x '.repeat(1e5);form.requestSubmit()")
        assert "maximum context length" in await page.wait_for("(document.querySelector('#chat .failed')||{}).textContent")
        await page.evaluate("window.fetch = () => Promise.reject(new TypeError('gone'))")
        await page.wait_for("document.getElementById('state').textContent == 'the server does not answer'")

    browse(steps)


async def shown(page: Page, name: str) -> int:
    return int((await page.evaluate(f"document.getElementById('{name}').textContent")).split()[0].replace(",", ""))
