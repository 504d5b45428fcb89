"""The fuzzer: a seed names its inputs, what is wrong is seen, and a short run finds nothing."""

import json
import random
from itertools import islice
from math import inf
from pathlib import Path

import pytest

from tests.support.scripted_server import MODULE
from tests.support.server import DEMO_CONFIG, serving
from tools.fuzz import images
from tools.fuzz.case import Case
from tools.fuzz.exchange import Answer, judge
from tools.fuzz.runner import KINDS, Finding, Limits, Report, keep, mix, run
from tools.fuzz.target import Target

SMALL = 16 * 1024


@pytest.mark.slow
def test_short_run_finds_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG, module=MODULE) as server:
        limits = Limits(seconds=inf, cases=80, most_bytes=SMALL, clients=2, stall_seconds=inf, health_seconds=inf)
        report = run(Target(server.url, server.process.pid), [*KINDS], 1, limits)
        assert [(finding.what, finding.case and finding.case.how) for finding in report.findings] == []
        assert report.cases == dict.fromkeys(KINDS, 20)
        assert {200, 400} <= set(report.statuses)
        assert [line for line in server.lines if "Traceback" in line or " ERROR " in line] == []
        assert server.stop() == 0


def test_seed_names_its_inputs() -> None:
    first, again, other = (list(islice(mix([*KINDS], seed, SMALL), 40)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_as_large_as_allowed_and_no_larger(kind: str) -> None:
    made = list(islice(KINDS[kind](random.Random(3), SMALL), 200))
    assert {case.kind for case in made} == {kind}
    # Base64 and the request around it come on top.
    assert SMALL / 4 < max(len(case.data) for case in made) < 4 * SMALL


def test_image_seeds_are_images() -> None:
    from io import BytesIO

    from PIL import Image

    kinds = set()
    for data in images.seeds().values():
        with Image.open(BytesIO(data)) as image:
            image.load()
            kinds.add(image.format)
    assert {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"} <= kinds


def _error(code: str, sentence: str = "It is wrong") -> bytes:
    return json.dumps({"error": sentence, "code": code, "details": {}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, b"", False),
        (400, _error("INVALID_PARAMETER"), False),
        (503, _error("QUEUE_FULL"), False),
        (431, _error("INVALID_HTTP"), False),
        (500, _error("INTERNAL_ERROR"), True),
        (503, _error("ENGINE_UNAVAILABLE"), True),
        (400, _error("NOT_FOUND"), True),
        (400, _error("INVALID_PARAMETER", "in /home/user/images"), True),
        (400, b'{"detail": "x"}', True),
        (500, b"", True),
        (400, b"cut off", True),
        (0, b"noise", True),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(status: int, body: bytes, wrong: bool) -> None:
    answer = Answer(status, "content-type: application/json", body)
    assert bool(judge(Case("json", "", b""), [answer])) == wrong


def test_connection_without_an_answer_is_a_finding_unless_its_http_is_wrong() -> None:
    assert judge(Case("json", "", b""), []) == ["0 answers to one request"]
    assert judge(Case("http", "", b"", well_formed=False), []) == []


def test_inputs_of_findings_are_kept_with_what_names_them(tmp_path: Path) -> None:
    finding = Finding(12, "500 INTERNAL_ERROR", Case("json", "strange values", b"bytes", b"before"))
    (path,) = keep(Report(seed=3, findings=[finding, Finding(13, "too much memory", None)]), tmp_path / "new")
    assert (path.read_bytes(), path.with_suffix(".setup").read_bytes()) == (b"bytes", b"before")
    assert json.loads(path.with_suffix(".json").read_text("utf-8")) == {
        "seed": 3,
        "number": 12,
        "how": "strange values",
        "what": "500 INTERNAL_ERROR",
    }
