"""The log's lines: a date in each, the request that they belong to, and one object each where a program reads them."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from mflux_api.cli.log_format import JsonFormatter, TextFormatter, set_log_format
from mflux_api.system.log_fields import begin_request, with_fields


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    begin_request("")
    yield
    begin_request("")


def record(text: str, *values: object, **fields: str | float | None) -> logging.LogRecord:
    made = logging.LogRecord("mflux_api.jobs", logging.WARNING, "/x.py", 1, text, values, None)
    vars(made).update(with_fields(**fields))
    return made


def test_text_has_a_date_with_its_zone_and_the_level() -> None:
    moment, level, rest = TextFormatter().format(record("job %s: failed", "abc")).split(" ", 2)
    assert datetime.fromisoformat(moment).utcoffset() is not None
    assert (level, rest.strip()) == ("WARNING", "job abc: failed")


def test_line_of_a_request_names_it() -> None:
    begin_request("mine-1")
    assert TextFormatter().format(record("it failed")).endswith("it failed (request mine-1)")
    assert json.loads(JsonFormatter().format(record("it failed")))["request_id"] == "mine-1"


def test_line_that_names_a_request_of_its_own_has_that() -> None:
    begin_request("other")
    assert TextFormatter().format(record("job ended", request_id="mine-2")).endswith("(request mine-2)")
    assert json.loads(JsonFormatter().format(record("job ended", request_id="mine-2")))["request_id"] == "mine-2"


def test_json_is_one_line_whatever_the_text_holds() -> None:
    line = JsonFormatter().format(record("a\nb \u2028 %s", '"quoted"', steps=4, ran_seconds=1.5, code=None))
    assert line.splitlines() == [line]
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "mflux_api.jobs",
        "message": 'a\nb \u2028 "quoted"',
        "steps": 4,
        "ran_seconds": 1.5,
        "code": None,
    }


def test_fields_take_no_place_of_the_lines_own() -> None:
    found = json.loads(JsonFormatter().format(record("true", message="false", level="none")))
    assert (found["message"], found["level"]) == ("true", "warning")


def test_trace_is_in_the_object() -> None:
    made = record("it failed")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonFormatter().format(made))["trace"]


def test_format_changes_for_our_handlers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = logging.StreamHandler(), logging.StreamHandler()
    ours.setFormatter(TextFormatter())
    theirs.setFormatter(plain := logging.Formatter("%(message)s"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [ours, theirs])
    set_log_format("json")
    assert isinstance(ours.formatter, JsonFormatter)
    assert theirs.formatter is plain
    set_log_format("text")
    assert re.match(r"\d{4}-\d\d-\d\dT", ours.format(record("dated")))
