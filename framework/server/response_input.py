"""From the input of /v1/responses to a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import APIError
from .protocol.chat import ChatBody, Message
from .protocol.common import GenerationBody
from .protocol.responses import ResponsesBody

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` calls them."""
_OWN = {"stream_options", "max_tokens", "response_format"}
"""Fields of all requests that are written otherwise here."""


def chat_body(body: ResponsesBody) -> ChatBody:
    """The chat completion that answers the same. Raises APIError for what has no counterpart there."""
    given = {name: getattr(body, name) for name in GenerationBody.model_fields.keys() - _OWN}
    return ChatBody(
        **given,
        messages=[Message(**message) for message in messages(body.instructions, body.input)],
        max_completion_tokens=body.max_output_tokens,
        response_format=_response_format(body.text or {}),
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_tool_choice(body.tool_choice) if body.tools else None,
        parallel_tool_calls=body.parallel_tool_calls,
        logprobs=LOGPROBS in (body.include or ()),
        top_logprobs=body.top_logprobs,
        reasoning_effort=(body.reasoning or {}).get("effort"),
        chat_template_kwargs=body.chat_template_kwargs,
    )


def messages(instructions: str | None, items: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages of input items. What the assistant thought, said and called in a row is one message; developers are the
    system, and what it says first is one message too. Raises APIError for items that stand for no text."""
    found: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        match item:
            case {"role": str(role), "content": content} if item.get("type", "message") == "message":
                _say(found, "system" if role == "developer" else role, _content(content))
            case {"type": "reasoning"}:
                parts = _content(item.get("content") or item.get("summary") or [])
                text = parts if isinstance(parts, str) else "\n".join(str(part.get("text", "")) for part in parts)
                found.append({"role": "assistant", "reasoning_content": text})
            case {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}:
                if not (found and found[-1]["role"] == "assistant"):
                    found.append({"role": "assistant"})
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                found[-1].setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output", "call_id": call_id, "output": output}:
                found.append({"role": "tool", "tool_call_id": call_id, "content": _content(output)})
            case _:
                raise APIError(400, f"an input item of this kind is not supported: {str(item)[:200]}", "input")
    return found


def _content(content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str) or (isinstance(content, list) and all(isinstance(part, dict) for part in content)):
        return content
    raise APIError(400, f"the content of an input item must be text or a list of parts; found {str(content)[:80]!r}", "input")


def _say(found: list[dict[str, Any]], role: str, content: str | list[dict[str, Any]]) -> None:
    if role == "assistant" and found and found[-1]["role"] == role and "content" not in found[-1]:
        found[-1]["content"] = content
    elif role == "system" and len(found) == 1 and found[0]["role"] == role:
        found[0]["content"] = [*_parts(found[0]["content"]), *_parts(content)]
    else:
        found.append({"role": role, "content": content})


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise APIError(400, f"tools of type {str(tool.get('type'))[:80]!r} are not available: only functions are", "tools")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
    return choice if choice is None or isinstance(choice, str) else dict(choice)


def _response_format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    match text.get("format"):
        case None:
            return None
        case {"type": "json_schema", **schema}:
            return {"type": "json_schema", "json_schema": schema}
        case {"type": str(), **_rest} as format:
            return dict(format)
    raise APIError(400, "`text.format` must be an object with a `type`", "text")
