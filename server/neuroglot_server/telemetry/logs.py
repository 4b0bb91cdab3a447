"""Logs on standard error, as text or JSON, each line with the id of its request.

No part of a prompt is ever logged.
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
"""Id of the request of the current task; empty outside of a request."""

FIELDS = "fields"
"""Attribute of a log record with its structured fields: `extra={FIELDS: {...}}`."""


class _Text(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO name: message [request id]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format the line, without a traceback."""
        line = super().formatMessage(record)
        request = current_request.get()
        return f"{line} [{request}]" if request else line


class _Json(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id, the record's fields, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the object."""
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
    """Log to standard error, unless the program has already configured the root logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler])
