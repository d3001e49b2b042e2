"""From the text of a model to messages: content, reasoning and tool calls, while the text is still coming.

Every format is one file with one generator over a growing ``Source``: it yields what is certain whatever comes next, and None
where more text is needed. Only positions in the text decide, so that how the text was cut on its way changes nothing."""

from .deltas import Content, Delta, Reasoning, ToolCall
from .message_parser import REASONING_FORMATS, TOOL_FORMATS, MessageParser

__all__ = ["REASONING_FORMATS", "TOOL_FORMATS", "Content", "Delta", "MessageParser", "Reasoning", "ToolCall"]
