"""What goes to standard error: lines for people, or JSON for machines, each with the request that it belongs to.

Nothing of a prompt is ever logged; what a request was about is in its caller's hands.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

from neuroglot_server.config.deployment import LogFormat

current_request: ContextVar[str] = ContextVar("current_request", default="")
"""The id of the request that the running task works for; empty outside of one."""

FIELDS = "fields"
"""The attribute of a record with what it says, by name: `extra={FIELDS: {...}}`."""


class _Text(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO name: message [request id]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line, before a trace that may follow."""
        line = super().formatMessage(record)
        request = current_request.get()
        return f"{line} [{request}]" if request else line


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, request_id, the record's fields, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, in one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current_request.get():
            line["request_id"] = request
        fields: Mapping[str, object] = getattr(record, FIELDS, {})
        line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, log_format: LogFormat) -> None:
    """Send the log of the whole process to standard error, unless a program around it has seen to that already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler])
