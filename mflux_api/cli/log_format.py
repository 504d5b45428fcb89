"""The log's lines: text for people, or one JSON object each for what collects them, with dates and request ids."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from mflux_api.system.log_fields import current_request, fields_of

Form = Literal["text", "json"]


def set_up_logging(level: str) -> None:
    """Have the log go to standard error as text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def set_log_format(form: Form) -> None:
    """Write the lines from now on in another form."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, TextFormatter | JsonFormatter):
            handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())


class TextFormatter(logging.Formatter):
    """Time with its zone, level, text, and the request's id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's
        """Return the local time, to the second."""
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """Return the line without a trace."""
        request_id = _request_of(record)
        line = super().formatMessage(record)
        return f"{line} (request {request_id})" if request_id else line


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, and the fields that the line has."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = _request_of(record)
        if request_id:
            line["request_id"] = request_id
        line |= {name: value for name, value in fields_of(record).items() if name not in line}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # Python's own encoder: a value that is not JSON becomes text, and no line is lost for it.
        return json.dumps(line, default=str)


def _request_of(record: logging.LogRecord) -> str:
    """Return the request that a line belongs to: the one that it names, else the one that its task works on."""
    named = fields_of(record).get("request_id")
    return str(named) if named else current_request()
