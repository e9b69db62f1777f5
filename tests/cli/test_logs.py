"""Log lines: one each, JSON off a terminal, no traceback unless debugging."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from outbox.logs import configure_logs, one_line


def failing(log: structlog.typing.FilteringBoundLogger) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("thing.failed", count=1)


def test_off_a_terminal_a_line_is_one_json_object_with_a_utc_time() -> None:
    stream = io.StringIO()
    configure_logs(None, stream=stream)
    structlog.get_logger("x").info("relay.connected", direct=True)
    line = json.loads(stream.getvalue())
    assert list(line)[:3] == ["at", "level", "event"]
    assert line["at"].endswith("Z")
    assert (line["level"], line["event"], line["direct"]) == ("info", "relay.connected", True)


def test_console_lines_are_for_people() -> None:
    stream = io.StringIO()
    configure_logs("console", stream=stream)
    structlog.get_logger("x").info("relay.connected", direct=True)
    assert "relay.connected" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_is_one_line(log_format: str) -> None:
    stream = io.StringIO()
    configure_logs(log_format, stream=stream)
    failing(structlog.get_logger("x"))
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: first second" in stream.getvalue()
    assert "Traceback" not in stream.getvalue()


def test_debugging_adds_the_traceback() -> None:
    stream = io.StringIO()
    configure_logs("json", debug=True, stream=stream)
    failing(structlog.get_logger("x"))
    assert "Traceback" in json.loads(stream.getvalue())["exception"]


def test_debug_lines_appear_only_when_debugging() -> None:
    for debug in (False, True):
        stream = io.StringIO()
        configure_logs("json", debug=debug, stream=stream)
        structlog.get_logger("x").debug("relay.routed")
        assert bool(stream.getvalue()) is debug


def test_other_libraries_come_in_the_same_form_and_chatter_does_not() -> None:
    stream = io.StringIO()
    configure_logs("json", stream=stream)
    logging.getLogger("somebody").warning("it %s", "broke")
    logging.getLogger("somebody").info("chatter")
    for name in ("dramatiq.worker.ConsumerThread", "pika.adapters", "redis.connection"):
        logging.getLogger(name).info("chatter")
    logging.getLogger("pika.adapters").error("chatter")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["logger"]) == ("it broke", "warning", "somebody")


def test_the_line_of_an_error_is_bounded() -> None:
    assert len(one_line(ValueError("x" * 10_000))) == 500
    assert one_line(ValueError()) == "ValueError"
