"""Every bad input gets one clear error of the contract's shape, and nothing is stored."""

import base64
import json
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image

from tests.support.server import Server

pytestmark = pytest.mark.slow

OK: dict[str, Any] = {"prompt": "x", "model": "demo", "width": 64, "height": 64, "steps": 1}
MISSING = object()

INVALID_FIELDS: list[tuple[str, Any]] = [
    ("prompt", MISSING),
    ("prompt", None),
    ("prompt", ""),
    ("prompt", "   "),
    ("prompt", 1),
    ("prompt", ["x"]),
    ("prompt", {"text": "x"}),
    ("prompt", "x" * 10_001),
    ("negative_prompt", 3),
    ("negative_prompt", "x" * 10_001),
    ("model", 5),
    ("model", ["demo"]),
    ("seed", -2),
    ("seed", 2**53),
    ("seed", 1.5),
    ("seed", "7"),
    ("seed", True),
    ("seed", 10**400),
    ("width", 513),
    ("width", 0),
    ("width", 48),
    ("width", 2064),
    ("width", -64),
    ("width", "64"),
    ("width", 64.5),
    ("height", 100),
    ("height", 4096),
    ("height", True),
    ("height", []),
    ("steps", 0),
    ("steps", -1),
    ("steps", 201),
    ("steps", 2.5),
    ("steps", "four"),
    ("guidance", -0.1),
    ("guidance", 30.5),
    ("guidance", "high"),
    ("guidance", False),
    ("num_images", 0),
    ("num_images", 5),
    ("num_images", 2.5),
    ("num_images", "2"),
    ("lora_files", "style"),
    ("lora_files", [1]),
    ("lora_scales", 1.0),
    ("lora_scales", [4.5]),
    ("lora_scales", [-1]),
    ("lora_scales", [0.5]),
    ("low_ram", "yes"),
    ("low_ram", 1),
    ("init_images", "base64"),
    ("init_images", [5]),
    ("init_images", ["a"] * 5),
    ("image_strength", 1.5),
    ("image_strength", "strong"),
]


def jobs(client: httpx.Client) -> list[str]:
    return [job["id"] for job in client.get("/api/v1/jobs", params={"limit": 500}).json()["jobs"]]


@pytest.mark.parametrize(("field", "value"), INVALID_FIELDS)
def test_invalid_field_is_named_with_its_limit_and_nothing_is_stored(
    client: httpx.Client, field: str, value: Any
) -> None:
    before = jobs(client)
    body = {key: kept for key, kept in {**OK, field: value}.items() if kept is not MISSING}
    answer = client.post("/api/v1/generate", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER"), answer.text[:200]
    assert answer.json()["details"]["field"] == field
    assert {"value", "limit"} <= set(answer.json()["details"])
    assert len(answer.content) < 1500
    assert jobs(client) == before


@pytest.mark.parametrize("path", ["/api/v1/generate", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x",}',
        b"[1, 2]",
        b'"text"',
        b"null",
        b"prompt=x",
        b"\xff\xfe\x00",
        b'{"prompt": "\xc3"}',
        b'{"prompt": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["empty", "cut", "comma", "array", "string", "null", "form", "utf16", "utf8", "nan", "deep", "deeper"],
)
def test_body_that_is_not_a_json_object(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_JSON")


@pytest.mark.parametrize("path", ["/api/v1/generate", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("nonsense", 400, "INVALID_MODEL"),
        ("FLUX2-KLEIN-4B", 400, "INVALID_MODEL"),
        ("../../etc/passwd", 400, "INVALID_MODEL"),
        ("schnell", 404, "MODEL_NOT_FOUND"),
        ("dev", 404, "MODEL_NOT_FOUND"),
        ("flux1-dev", 404, "MODEL_NOT_FOUND"),
        ("dev-4-bit", 404, "MODEL_NOT_FOUND"),
        ("schnell-8-bit", 404, "MODEL_NOT_FOUND"),
        ("flux2-klein-9b", 400, "MODEL_NOT_DOWNLOADED"),
        ("klein-9b", 400, "MODEL_NOT_DOWNLOADED"),
        ("flux2-klein-9b-8-bit", 400, "MODEL_NOT_DOWNLOADED"),
        ("flux2-dev", 400, "MODEL_NOT_DOWNLOADED"),
        ("flux2-dev-8-bit", 400, "MODEL_NOT_DOWNLOADED"),
        ("seedvr2", 400, "INVALID_PARAMETER"),
    ],
)
def test_models_that_cannot_be_used(client: httpx.Client, path: str, model: str, status: int, code: str) -> None:
    answer = client.post(path, json={**OK, "model": model})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if code == "INVALID_MODEL":
        assert answer.json()["error"] == "Invalid model specified"
        assert "flux2-klein-4b" in answer.json()["details"]["available_models"]
    if code == "MODEL_NOT_DOWNLOADED":
        alias = model if model.startswith("flux2-") else f"flux2-{model}"
        assert answer.json()["details"] == {
            "model": alias,
            "command": f"mflux-api models download {alias}",
            "endpoint": f"POST /api/v1/models/{alias}/download",
        }
        assert all(answer.json()["details"][part] in answer.json()["error"] for part in ("command", "endpoint"))
    if model == "schnell":
        sentence = "Model 'schnell' not found. Flux1 models removed. Use flux2-klein-4b or flux2-klein-9b"
        assert answer.json()["error"] == sentence


def test_checks_come_in_order_parameters_then_model_then_what_it_needs(client: httpx.Client) -> None:
    answer = client.post("/api/v1/generate", json={**OK, "steps": 0, "model": "nonsense", "init_images": ["a"]})
    assert answer.json()["code"] == "INVALID_PARAMETER"
    answer = client.post("/api/v1/generate", json={**OK, "model": "nonsense", "init_images": ["a"]})
    assert answer.json()["code"] == "INVALID_MODEL"
    answer = client.post("/api/v1/generate", json={**OK, "model": "seedvr2", "init_images": ["a", "b"]})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "init_images")
    answer = client.post("/api/v1/generate", json={**OK, "model": "seedvr2", "init_images": ["a"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "MODEL_NOT_DOWNLOADED")
    answer = client.post("/api/v1/generate", json={**OK, "init_images": ["a"], "lora_files": ["a"]})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "lora_files")
    answer = client.post("/api/v1/generate", json={**OK, "init_images": ["a"]})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "init_images")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/api/v1", 404, "NOT_FOUND"),
        ("POST", "/api/v2/generate", 404, "NOT_FOUND"),
        ("GET", "/api/v1/jobs/000000000000", 404, "JOB_NOT_FOUND"),
        ("GET", "/api/v1/jobs/..%2f..%2fetc", 404, "NOT_FOUND"),
        ("GET", "/api/v1/jobs/000000000000/stream", 404, "JOB_NOT_FOUND"),
        ("GET", "/api/v1/jobs/000000000000/images/0", 404, "JOB_NOT_FOUND"),
        ("DELETE", "/api/v1/jobs/000000000000", 404, "JOB_NOT_FOUND"),
        ("GET", "/api/v1/models/nonsense/status", 404, "MODEL_NOT_FOUND"),
        ("GET", "/api/v1/models/schnell/status", 404, "MODEL_NOT_FOUND"),
        ("GET", "/api/v1/jobs?limit=0", 400, "INVALID_PARAMETER"),
        ("GET", "/api/v1/jobs?limit=many", 400, "INVALID_PARAMETER"),
        ("GET", "/api/v1/jobs?status=lost", 400, "INVALID_PARAMETER"),
        ("GET", "/api/v1/jobs?cursor=nonsense", 400, "INVALID_PARAMETER"),
        ("GET", "/api/v1/generate", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/sdapi/v1/txt2img", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/health", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/v1/jobs", 405, "METHOD_NOT_ALLOWED"),
        ("PATCH", "/api/v1/jobs/000000000000", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_paths_methods_and_queries(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"error", "code", "details"}
    assert answer.headers["access-control-allow-origin"] == "*"
    if status == 405:
        assert answer.headers["allow"]


def test_body_of_65_megabytes(client: httpx.Client) -> None:
    body = b'{"prompt": "' + b"x" * (65 * 1024 * 1024) + b'"}'
    answer = client.post("/api/v1/generate", content=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


def test_chunked_body_of_65_megabytes(client: httpx.Client) -> None:
    answer = client.post("/api/v1/generate", content=(b"x" * 1024 * 1024 for _ in range(65)))
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


def test_clients_that_send_100_megabytes_all_read_413_and_hold_no_memory(server: Server) -> None:
    body = bytes(100 * 2**20)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    def post(_: int) -> tuple[int, str]:
        # It does not look for an answer before it has sent everything.
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/api/v1/generate", body, timeout=60)
        with caught.value as answer:
            return answer.code, json.load(answer)["code"]

    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(post, range(16))) == {(413, "BODY_TOO_LARGE")}
    assert process.memory_info().rss - before < 32 * 2**20


@pytest.mark.parametrize(("megabytes", "code"), [(60, "INVALID_JSON"), (66, "BODY_TOO_LARGE")])
def test_large_bodies_that_are_refused_do_not_wait_for_the_garbage_collector(
    server: Server, client: httpx.Client, megabytes: int, code: str
) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for _ in range(4):
        # In chunks: the length is known at the end.
        answer = client.post("/api/v1/generate", content=(b"x" * 2**20 for _ in range(megabytes)))
        assert answer.json()["code"] == code
    deadline = time.monotonic() + 10
    while process.memory_info().rss - before > 32 * 2**20:
        assert time.monotonic() < deadline, "the bodies are still in memory"
        time.sleep(0.05)


@pytest.mark.parametrize("text", [b"\0\0\0\0", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000])
def test_bytes_that_are_not_http_do_not_disturb_the_server(server: Server, client: httpx.Client, text: bytes) -> None:
    address = urlsplit(server.url)
    target = (address.hostname or "", address.port or 0)
    answer = b""
    with socket.create_connection(target, timeout=10) as sock:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        while some := sock.recv(4096):
            answer += some
    assert b'"code":"INVALID_HTTP"' in answer, answer
    assert client.get("/api/v1/health").json()["status"] == "healthy"


def test_prompts_never_show_in_errors_or_in_the_log(server: Server, client: httpx.Client) -> None:
    secret = "the-secret-of-the-prompt"
    answer = client.post("/api/v1/generate", json={**OK, "prompt": secret * 500})
    assert answer.status_code == 400
    assert secret not in answer.text
    client.post("/sdapi/v1/txt2img", json={**OK, "prompt": secret}).raise_for_status()
    assert not [line for line in server.lines if secret in line]


def test_errors_hold_no_path_and_no_traceback(client: httpx.Client, server: Server) -> None:
    answers = [client.post("/api/v1/generate", content=b"{"), client.get("/nothing"), client.put("/api/v1/jobs")]
    for answer in answers:
        assert "Traceback" not in answer.text
        assert str(server.folder) not in json.dumps(answer.json())


@pytest.mark.parametrize("field", ["batch_size", "n_iter"])
@pytest.mark.parametrize("value", ["9" * 5000, "0" * 5000 + "1", "٣" * 5000, 10**400])
def test_number_of_thousands_of_digits_is_a_bad_parameter(client: httpx.Client, field: str, value: Any) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={**OK, field: value})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["details"]["field"] == field


def test_limit_and_index_of_thousands_of_digits_are_client_errors(client: httpx.Client) -> None:
    answer = client.get("/api/v1/jobs", params={"limit": "9" * 5000})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "limit")
    assert client.get(f"/api/v1/jobs/000000000000/images/{'9' * 5000}").status_code == 404


@pytest.mark.parametrize(
    ("field", "value", "dialect"),
    [
        ("cfg_scale", 31, {}),
        ("cfg_scale", "high", {}),
        ("denoising_strength", 1.5, {}),
        ("denoising_strength", 1.5, {"sampler_name": "Euler"}),
        ("sd_model_checkpoint", 5, {}),
    ],
)
def test_error_names_the_field_as_the_client_does(
    client: httpx.Client, field: str, value: Any, dialect: dict[str, Any]
) -> None:
    body = {key: kept for key, kept in OK.items() if key != "model"} | {field: value} | dialect
    answer = client.post("/sdapi/v1/txt2img", json=body)
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)
    assert f"'{field}'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("counts", "field"),
    [({"batch_size": 5}, "batch_size"), ({"n_iter": "5"}, "n_iter"), ({"batch_size": 2, "n_iter": 3}, "n_iter")],
)
def test_too_large_batch_is_told_by_the_name_that_the_client_used(
    client: httpx.Client, counts: dict[str, Any], field: str
) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={**OK, **counts})
    assert (answer.status_code, answer.json()["details"]["field"], answer.json()["details"]["limit"]) == (400, field, 4)
    assert f"'{field}'" in answer.json()["error"]


def test_huge_number_does_not_make_the_error_huge(client: httpx.Client) -> None:
    answer = client.post("/api/v1/generate", json={**OK, "steps": 10**4000})
    assert (answer.status_code, answer.json()["details"]["value"]) == (400, "int")


def test_images_put_no_warning_with_a_path_into_the_log(server: Server, client: httpx.Client) -> None:
    odd = BytesIO()
    Image.new("RGB", (64, 64)).save(odd, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    body = {**OK, "init_images": [base64.b64encode(odd.getvalue()).decode()]}
    assert client.post("/sdapi/v1/img2img", json=body).status_code == 200
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = {**OK, "init_images": [base64.b64encode(png + struct.pack(">I", 4) + b"IDAT").decode()]}
    answer = client.post("/sdapi/v1/img2img", json=body)
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "init_images")
    assert "10000" in answer.json()["error"]
    assert not [line for line in server.lines if "Warning" in line or "site-packages" in line]


@pytest.mark.parametrize("count", [5, 65, 10**9])
def test_too_many_images_are_told_the_services_own_limit(client: httpx.Client, count: int) -> None:
    answer = client.post("/api/v1/generate", json={**OK, "num_images": count}).json()
    assert (answer["details"]["field"], answer["details"]["limit"]) == ("num_images", 4)
