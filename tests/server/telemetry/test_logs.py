from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from neuroglot_server.config.deployment import LogFormat
from neuroglot_server.telemetry.logs import FIELDS, configure, current_request


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(log_format: LogFormat, capsys: pytest.CaptureFixture[str]) -> list[str]:
    logging.getLogger().handlers.clear()  # pytest's own
    configure("info", log_format)
    logger = logging.getLogger("some.where")
    logger.info("hello %s", "you", extra={FIELDS: {"code": "OK", "duration_ms": 1.5}})
    logger.debug("too quiet")
    token = current_request.set("abc-1")
    try:
        raise ValueError("é")
    except ValueError:
        logger.exception("failed")
    finally:
        current_request.reset(token)
    return capsys.readouterr().err.splitlines()


def test_a_line_of_json_is_one_object_with_all_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = map(json.loads, lines(LogFormat.JSON, capsys))
    time = first.pop("time")
    assert time.endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "some.where",
        "message": "hello you",
        "code": "OK",
        "duration_ms": 1.5,
    }
    assert (second["message"], second["request_id"], second["level"]) == ("failed", "abc-1", "error")
    assert second["exception"].endswith("ValueError: é")


def test_a_line_of_text_names_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *trace = lines(LogFormat.TEXT, capsys)
    assert first.endswith("INFO some.where: hello you")
    assert second.endswith("ERROR some.where: failed [abc-1]")
    assert trace[-1] == "ValueError: é"
