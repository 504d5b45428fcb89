"""Sending one case and judging what comes back."""

import contextlib
import json
import re
import socket
from typing import Any

import attrs

from mflux_api.errors import all_errors
from tools.fuzz.case import Case
from tools.fuzz.target import Target

_ANSWER_SECONDS = 180.0
_MOST_READ = 64 * 2**20

# A 5xx that says something is broken, and not that something is short or on its way, is a finding whatever its code.
_BROKEN = {
    "INTERNAL_ERROR",
    "GENERATION_FAILED",
    "ENGINE_CRASHED",
    "SERVER_CRASHED",
    "SERVICE_RESTARTING",
    "ENGINE_UNAVAILABLE",
}
_CODES = {error.code: error.status for error in all_errors()}
_LEAKS = re.compile(r"Traceback|File \"|site-packages|/tmp/|/home/|/Users/|/root/|object at 0x")


@attrs.frozen
class Answer:
    """What a server sent back."""

    status: int
    """0 where it closed without an answer."""
    headers: str
    body: bytes


def send(target: Target, case: Case) -> list[Answer]:
    """Send a case, its setup first, and return every answer of its connection.

    Raises:
        TimeoutError: no end came in time.
    """
    if case.setup:
        send(target, Case(case.kind, "setup", case.setup))
    data = case.data
    if target.key is not None and case.well_formed:
        data = data.replace(b"\r\n", f"\r\nX-API-Key: {target.key}\r\n".encode(), 1)
    with socket.create_connection((target.host, target.port), timeout=_ANSWER_SECONDS) as connection:
        # A server may answer before it has read everything, and close.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            if not case.well_formed:
                connection.shutdown(socket.SHUT_WR)
        came = bytearray()
        with contextlib.suppress(ConnectionError):
            while len(came) < _MOST_READ and (some := connection.recv(1 << 16)):
                came += some
    return _parse(bytes(came))


def _parse(data: bytes) -> list[Answer]:
    answers = list[Answer]()
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 (\d{3})[ \r]", head + b"\r")
        if found is None:
            return [*answers, Answer(0, "", data)]
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        status = int(found.group(1))
        size = int(length.group(1)) if length else (0 if status in (100, 204, 304) else len(rest))
        # The answer to HEAD has a length and no body.
        size = 0 if rest.startswith(b"HTTP/1.1 ") else size
        answers.append(Answer(status, head.decode("latin-1"), rest[:size]))
        data = rest[size:]
    return [answer for answer in answers if answer.status != 100]


def judge(case: Case, answers: list[Answer]) -> list[str]:
    """Return everything that is wrong with the answers to a case."""
    if case.well_formed and len(answers) != 1:
        return [f"{len(answers)} answers to one request"]
    return [finding for answer in answers for finding in _judge_one(answer)]


def _judge_one(answer: Answer) -> list[str]:
    if answer.status == 0:
        return [f"an answer that is not HTTP: {answer.body[:60]!r}"]
    if answer.status < 400 or not answer.body:
        return [] if answer.status < 500 else [f"{answer.status} without a body"]
    if "application/json" not in answer.headers.lower():
        return [f"{answer.status} that is not JSON"]
    try:
        body: Any = json.loads(answer.body)
    except ValueError:
        return [f"{answer.status} whose body is cut off or not JSON"]
    if not isinstance(body, dict) or not {"error", "code", "details"} <= body.keys():
        return [f"{answer.status} without error, code and details: {str(body)[:200]}"]
    found = []
    code = body["code"]
    # What is not HTTP gets the status that HTTP has for it (400, 431, 501 …), and one code.
    if _CODES.get(code) != answer.status and (code != "INVALID_HTTP" or answer.status in (500, 503)):
        found.append(f"{answer.status} with the code {code}, which the contract does not have there")
    if answer.status >= 500 and code in _BROKEN:
        found.append(f"{answer.status} {code}: {str(body['error'])[:200]}")
    if (leak := _LEAKS.search(answer.body.decode("utf-8", "replace"))) is not None:
        found.append(f"{answer.status} {code} tells of this machine: {leak.group()!r}")
    return found
