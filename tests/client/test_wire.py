"""The client without a server: what is read, what is sent, and what is not believed."""

import base64
import itertools
import json
from pathlib import Path

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.client import (
    Client,
    Finished,
    GenerateRequest,
    PartialImage,
    Progress,
    ServerUnreachable,
    UnexpectedAnswer,
    answers,
)
from mflux_api.client.address import base_url, transport_options
from mflux_api.client.calls import body_of
from mflux_api.client.following import MAX_EVENT, PAUSES, Following
from mflux_api.errors import InternalError, QueueFull, ServiceRestarting
from mflux_api.http import schemas
from mflux_api.http.routes import job_schemas, lora_schemas, model_schemas, system_schemas
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import Extend

BASE = "http://127.0.0.1:7861"
JOB = {"id": "0123456789ab", "status": "completed", "progress": 1.0, "result": {"images": ["/x"], "seeds": [5]}}
STREAM = (
    b": hello\n\n"
    b'id: a-1\nevent: progress\ndata: {"id": "j", "status": "queued", "stage": "queued", "progress": 0.0}\n\n'
    b'id: a-2\nevent: progress\ndata: {"id": "j", "status": "generating", "stage": "dreaming", "progress": 0.1}\n\n'
    b'id: a-3\r\nevent: unheard-of\r\ndata: {"a": \xff}\r\n\r\n'
    b'event: progress\ndata: {"id": "j", "status": "generating", "stage": "denoising",\ndata:  "progress": 0.5}\n\n'
    b"id: end\nevent: complete\ndata: " + json.dumps(JOB).encode() + b"\n\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM))))
def test_stream_is_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    following = Following(BASE, "j", previews=False)
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    found = [event for piece in pieces for event in following.feed(piece)]
    # What a newer server says more than is known here is left out.
    assert [event.progress for event in found if isinstance(event, Progress)] == [0.0, 0.5]
    assert isinstance(found[-1], Finished)
    assert following.ended


def test_partial_image_comes_as_the_bytes_of_its_file() -> None:
    sent = {"id": "j", "image": 0, "partial_image_index": 0, "step": 1, "steps": 2, "width": 64, "height": 64}
    data = json.dumps(sent | {"output_format": "png", "b64_json": base64.b64encode(b"PNG").decode()})
    (event,) = Following(BASE, "j", previews=False).feed(f"event: partial_image\ndata: {data}\n\n".encode())
    assert isinstance(event, PartialImage)
    assert (event.step, event.b64_json) == (1, b"PNG")


def test_follower_goes_on_after_the_last_event_that_was_whole() -> None:
    following = Following(BASE, "j", previews=True)
    assert following.params() == {"images": "url", "previews": "jpeg"}
    assert "Last-Event-ID" not in following.headers()
    cut = STREAM.index(b"id: end") + 3
    assert list(following.feed(STREAM[:cut]))
    assert following.headers()["Last-Event-ID"] == "a-3"
    assert [type(event) for event in following.feed(STREAM[STREAM.index(b"id: end") :])] == [Finished]


def test_follower_gives_up_where_no_connection_brings_an_event() -> None:
    following = Following(BASE, "j", previews=False)
    assert [following.pause() for _ in range(len(PAUSES) + 1)] == [*PAUSES, None]
    again = Following(BASE, "j", previews=False)
    again.pause()
    assert list(again.feed(STREAM[: STREAM.index(b"id: a-2")]))
    assert again.pause() == PAUSES[0]


def test_endless_event_is_refused() -> None:
    following = Following(BASE, "j", previews=False)
    for _ in range(MAX_EVENT // 2**20 - 1):
        assert list(following.feed(bytes(2**20))) == []
    with pytest.raises(UnexpectedAnswer):
        list(following.feed(bytes(2**20 + 1)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (answers.Job, schemas.JobResponse),
        (answers.JobResult, schemas.JobResult),
        (answers.WebhookStatus, schemas.WebhookResponse),
        (answers.PartialImage, schemas.PartialImageResponse),
        (answers.Submitted, job_schemas.GenerateResponse),
        (answers.JobPage, job_schemas.JobList),
        (answers.BulkCancel, job_schemas.BulkCancelResponse),
        (answers.CancelOutcome, job_schemas.CancelOutcome),
        (answers.ModelInfo, model_schemas.ModelResponse),
        (answers.ModelStatus, model_schemas.ModelStatus),
        (answers.Lora, lora_schemas.LoraResponse),
        (answers.LoraList, lora_schemas.LoraList),
        (answers.SkippedLora, lora_schemas.SkippedLora),
        (answers.Queue, system_schemas.QueueResponse),
        (answers.ActiveJob, system_schemas.ActiveJob),
        (answers.QueuedJob, system_schemas.QueuedJob),
        (answers.Health, system_schemas.DegradedHealthResponse),
    ],
    ids=lambda each: each.__name__,
)
def test_answer_has_the_fields_of_the_servers(ours: type, theirs: type) -> None:
    assert {field.name for field in attrs.fields(ours)} == {field.name for field in attrs.fields(theirs)}


def test_request_arrives_as_it_was_made() -> None:
    asked = GenerateRequest(prompt="a", seed=0, init_images=("aGVq",), extend=Extend(left=16), low_ram=True)
    sent = json.loads(json.dumps(body_of(asked)))
    assert set(sent) == {"prompt", "seed", "init_images", "extend", "low_ram"}
    assert convert(sent, GenerateRequest) == asked


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("localhost:7861", "http://localhost:7861"),
        ("http://h:1/api/v1/", "http://h:1"),
        ("https://h/images/", "https://h/images"),
        ("http://[::1]:5", "http://[::1]:5"),
    ],
)
def test_address_may_be_what_people_copy(typed: str, address: str) -> None:
    assert base_url(typed) == address


@pytest.mark.parametrize("typed", ["", "ftp://h", "http://", "http://u:p@h", "h:0", "h:x", "http://h?a", "a b"])
def test_what_is_not_an_address_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="not the address of a server"):
        Client(typed)


def test_key_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="API key"):
        Client(BASE, api_key="a\r\nX-Other: b")


def test_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks4://secret:pass@h:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ServerUnreachable, match="http_proxy names a SOCKS proxy") as refused:
        Client("http://elsewhere.example")
    assert "secret" not in str(refused.value)
    assert transport_options(BASE)["proxy"] is None


def answering(monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response | Exception) -> list[httpx.Request]:
    """Have every client answered with these, one after the other; return what was asked."""
    asked, left = list[httpx.Request](), list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    options = {"transport": httpx.MockTransport(answer), "trust_env": False}
    monkeypatch.setattr("mflux_api.client.transport.transport_options", lambda _: options)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return asked


HEALTHY = httpx.Response(200, json={"status": "healthy", "version": "9.0.0", "new": 1})
RESTARTING = {"error": "wait", "code": "SERVICE_RESTARTING", "details": {}}


def test_what_may_be_sent_twice_is_sent_again_and_a_job_under_its_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = httpx.Response(200, json={"job_id": "j", "status": "queued", "position": 1})
    failures = (httpx.ReadError("cut"), httpx.Response(503, json=RESTARTING))
    asked = answering(monkeypatch, *failures, HEALTHY, *failures, accepted)
    with Client(BASE, api_key="kéy") as client:
        assert client.health().version == "9.0.0"
        assert client.submit(GenerateRequest(prompt="a")).job_id == "j"
    assert len({request.headers["Idempotency-Key"] for request in asked[3:]}) == 1
    assert {request.headers["X-API-Key"] for request in asked} == {"kéy"}


def test_what_may_not_be_sent_twice_is_sent_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    asked = answering(monkeypatch, httpx.ReadError("cut"), httpx.ReadError("cut"))
    with Client(BASE) as client:
        with pytest.raises(ServerUnreachable):
            client.load_model("demo")
        with pytest.raises(ServerUnreachable):
            client.add_lora(tmp_path / "a.safetensors")
    assert len(asked) == 2


def test_server_that_was_never_there_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, *[httpx.ConnectError("refused")] * 2)
    with Client(BASE) as client:
        with pytest.raises(ServerUnreachable):
            client.health()
        with pytest.raises(ServerUnreachable):
            client.wait("j")
    assert len(asked) == 2


def test_server_that_restarts_for_ever_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *[httpx.Response(503, json=RESTARTING)] * 4)
    with Client(BASE) as client, pytest.raises(ServiceRestarting):
        client.health()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(200, text="<html>"), UnexpectedAnswer),
        (httpx.Response(200, json=[]), UnexpectedAnswer),
        (httpx.Response(200, json={"status": "healthy"}), UnexpectedAnswer),
        (httpx.Response(404, text="<html>"), UnexpectedAnswer),
        (httpx.Response(302, headers={"Location": "http://elsewhere.example"}), UnexpectedAnswer),
        (httpx.Response(503, json={"error": "full", "code": "QUEUE_FULL", "details": {}}), QueueFull),
        (httpx.Response(500, json={"error": "new", "code": "OF_A_NEWER_SERVER", "details": {}}), InternalError),
    ],
)
def test_answer_that_is_not_one_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, error: type[Exception]
) -> None:
    answering(monkeypatch, answer)
    with Client(BASE) as client, pytest.raises(error):
        client.health()


def test_stream_that_is_cut_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = STREAM.index(b"id: end")
    kind = {"Content-Type": "text/event-stream"}
    asked = answering(
        monkeypatch,
        httpx.Response(200, content=STREAM[:cut], headers=kind),
        httpx.ConnectError("it restarts"),
        httpx.Response(200, content=STREAM[cut:], headers=kind),
    )
    with Client(BASE) as client:
        assert client.wait("j").id == JOB["id"]
    assert [request.headers.get("Last-Event-ID") for request in asked] == [None, "a-3", "a-3"]
