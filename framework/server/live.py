"""The page at /: what the engine does now, in a browser, and a box to talk to it."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ..metrics import Counter, Histogram, Metric
from .serving import Serving

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse((files("framework.server") / "page" / "index.html").read_text())


@router.get("/live")
async def live(request: Request) -> dict[str, Any]:
    """What the page shows; it asks once a second. No prompt and no text is among it."""
    serving: Serving = request.app.state.serving
    engine, info = serving.engine, serving.engine.info
    report, metrics = await engine.report(), await engine.metrics()
    finished = (m.value for m in metrics if isinstance(m, Counter) and m.name == "vllm:request_success")
    stats, tokenizer = report["stats"], engine.inputs.tokenizer
    num_blocks = (info.num_blocks - 1) * engine.config.parallel.dp  # without the null blocks
    return {
        "model": serving.model_names[0],
        "has_chat_template": bool(serving.chat_template or getattr(tokenizer, "chat_template", None)),
        "uptime_s": time.monotonic() - serving.started_s,
        "max_model_len": info.max_model_len,
        "block_size": info.block_size,
        "num_blocks": num_blocks,
        "num_blocks_used": round(stats["kv_usage"] * num_blocks),
        "num_running": stats["num_running"],
        "num_waiting": stats["num_waiting"],
        "num_preemptions": stats["num_preemptions"],
        "num_finished": sum(finished),
        "prompt_tokens": stats["num_prompt_tokens"],
        "generation_tokens": stats["num_output_tokens"],
        "ttft_s": _mean(metrics, "vllm:time_to_first_token_seconds"),
        "tpot_s": _mean(metrics, "vllm:request_time_per_output_token_seconds"),
        "plan": {op: {"impl": kernel["impl"], "calls": kernel.get("calls")} for op, kernel in report["plan"].items()},
    }


def _mean(metrics: list[Metric], name: str) -> float | None:
    """Of all values that the engines took; None while there is none."""
    found = [m for m in metrics if isinstance(m, Histogram) and m.name == name]
    count = sum(m.count for m in found)
    return sum(m.sum for m in found) / count if count else None
