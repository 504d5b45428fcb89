"""What the tools do, asked by the SDK's client in this process over a service that does what the test says."""

import os
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import mcp_types as types
import pytest
import trio
from mcp.client.context import ClientRequestContext
from mcp.shared.exceptions import MCPError
from pydantic import FileUrl

from mflux_api.errors import OutOfMemory
from mflux_api.jobs.request import GenerateRequest
from mflux_api.mcp import tools
from mflux_api.mcp.arguments import EDIT, GENERATE, UPSCALE
from mflux_api.mcp.backend import Unreachable
from mflux_api.mcp.shown_images import FULL_BYTES, MAX_IMAGES, THUMBNAIL_BYTES
from mflux_api.mcp.tools import MAX_CALLS
from tests.mcp.fakes import COMPLETED, JOB_ID, FakeBackend, connected, text_of
from tests.support.server import ROOT

LAKE = {"prompt": "a lake"}
MAKING = ("generate", "edit", "upscale")
# The protocol's is 2020-12; the SDK for TypeScript reads the older one.
DIALECTS = (jsonschema.Draft202012Validator, jsonschema.Draft7Validator)


def validate(dialect: Any, schema: dict[str, Any], value: Any) -> None:
    dialect.check_schema(schema)
    dialect(schema).validate(value)


def at_once(folder: Path, **fields: Any) -> FakeBackend:
    """A service whose jobs end at once."""
    backend = FakeBackend(folder, **fields)
    backend.go_on.set()
    return backend


async def test_every_answer_has_the_shape_that_its_tool_declares(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    calls: dict[str, dict[str, Any]] = {
        "generate": LAKE,
        "edit": LAKE | {"init_images": ["a.png"], "mask": "a.png"},
        "upscale": {"init_images": ["a.png"]},
        "list_models": {},
        "job_status": {"job_id": JOB_ID, "wait_seconds": 1},
        "cancel_job": {"job_id": JOB_ID},
    }
    async with connected(at_once(tmp_path)) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert listed.keys() == calls.keys()
        for name, tool in listed.items():
            assert all("description" in each for each in tool.input_schema["properties"].values()), name
            assert tool.output_schema is not None
            answer = await client.call_tool(name, calls[name])
            assert not answer.is_error, text_of(answer)
            for dialect in DIALECTS:
                validate(dialect, tool.input_schema, calls[name])
                validate(dialect, tool.output_schema, answer.structured_content)


async def test_images_are_sent_to_the_service_as_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    backend = at_once(tmp_path)
    given = ["a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri(), "/9j/4AAQ"]
    async with connected(backend) as client:
        mask = "data:image/png;base64,cG5n"
        await client.call_tool("edit", LAKE | {"init_images": given, "mask": mask, "seed": None})
    (body,) = backend.bodies
    assert body == LAKE | {"init_images": ["cG5n"] * 3 + ["/9j/4AAQ"], "mask": mask}


async def test_cancelled_call_cancels_its_job(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path)
    async with connected(backend) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.call_tool, "generate", LAKE)
        await backend.following.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await backend.cancelled.wait()
    assert backend.cancelled.is_set()


async def test_job_in_the_background_outlives_its_call_and_is_looked_at(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path)
    async with connected(backend) as client:
        begun = await client.call_tool("generate", LAKE | {"background": True})
        assert (begun.structured_content["status"], begun.structured_content["images"]) == ("generating", [])
        assert "background" not in backend.bodies[0]
        assert text_of(begun) == f"Job {JOB_ID} on demo is generating: denoising, 40% done"
        shown = await client.call_tool("generate", LAKE | {"background": True, "image_content": "full"})
        (warning,) = shown.structured_content["warnings"]
        assert warning == "'image_content' has no effect beside 'background'; give it to job_status"
        waited = await client.call_tool("job_status", {"job_id": JOB_ID, "wait_seconds": 0.01})
        assert waited.structured_content["status"] == "generating"
        backend.go_on.set()
        done = await client.call_tool("job_status", {"job_id": JOB_ID})
    assert done.structured_content["seconds"] == 2.0
    assert [block.type for block in done.content] == ["text", "resource_link", "image"]
    assert not backend.cancelled.is_set()


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("generate", {}, "'prompt' is required (INVALID_PARAMETER)"),
        ("generate", LAKE | {"sampler": "Euler"}, "'sampler' is not an argument of generate; expected prompt, model, "),
        ("generate", LAKE | {"image_content": "huge"}, "'image_content' is invalid: expected "),
        ("generate", LAKE | {"background": "yes"}, "'background' is invalid: expected bool, got str"),
        ("edit", LAKE, "'init_images' is required (INVALID_PARAMETER)"),
        ("edit", LAKE | {"init_images": "a.png"}, "'init_images' is invalid: expected array, got str"),
        ("edit", LAKE | {"init_images": ["a"] * 5}, "'init_images' is invalid: expected array of length <= 4"),
        ("edit", LAKE | {"init_images": ["http://x/a.png"]}, "'init_images' is a URL; save the image to a file"),
        (
            "upscale",
            {"init_images": ["cG5n"], "model": "demo"},
            "'model' is not an upscaler; expected one of seedvr2, my",
        ),
        ("job_status", {"job_id": "x", "wait_seconds": 51}, "'wait_seconds' is invalid: expected float <= 50.0"),
        ("cancel_job", {}, "'job_id' is required (INVALID_PARAMETER)"),
        ("list_models", {"a": 1}, "'a' is not an argument of list_models; it takes none"),
    ],
)
async def test_wrong_arguments_are_errors_that_an_assistant_can_act_on(
    tool: str, arguments: dict[str, Any], says: str, tmp_path: Path
) -> None:
    backend = at_once(tmp_path)
    async with connected(backend) as client:
        answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    assert text_of(answer).startswith(says)
    assert backend.bodies == []


async def test_images_of_a_call_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "MAX_IMAGES_TEXT", 2 * 2**20)
    backend = at_once(tmp_path)
    half = "A" * 2**20
    async with connected(backend) as client:
        fits = await client.call_tool("edit", LAKE | {"init_images": [half, half]})
        over = await client.call_tool("edit", LAKE | {"init_images": [half, half], "mask": "AAAA"})
    assert not fits.is_error, text_of(fits)
    assert "all images of a call have more than 1 MB together" in text_of(over)
    assert len(backend.bodies) == 1


@pytest.mark.parametrize(("version", "linked"), [("2024-11-05", False), ("2025-03-26", False), ("2025-06-18", True)])
async def test_clients_of_older_versions_get_no_block_that_they_do_not_know(
    version: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the SDK's client asks for, which is otherwise the newest one.
    monkeypatch.setattr("mcp.client.session.LATEST_HANDSHAKE_VERSION", version)
    async with connected(at_once(tmp_path), mode="legacy") as client:
        answer = await client.call_tool("generate", LAKE)
    assert [block.type for block in answer.content] == ["text", *["resource_link"] * linked, "image"]


async def test_prompts_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with connected(at_once(tmp_path)) as client:
        await client.call_tool("generate", {"prompt": "unspeakable"})
        wrong = await client.call_tool("generate", {"prompt": "unspeakable" * 1000})
        await client.call_tool("generate", {"prompt": ["unspeakable"]})
    assert "unspeakable" not in f"{caplog.text} {text_of(wrong)}"


async def test_upscaler_that_is_on_disk_is_preferred(tmp_path: Path) -> None:
    backend = at_once(tmp_path)
    async with connected(backend) as client:
        await client.call_tool("upscale", {"init_images": ["cG5n"]})
    assert backend.bodies[0]["model"] == "my-seedvr2"


async def test_failed_job_is_an_error_in_the_words_of_the_tools(tmp_path: Path) -> None:
    error = OutOfMemory("It does not fit; GET /api/v1/models lists smaller ones")
    async with connected(at_once(tmp_path, end=attrs.evolve(COMPLETED, status="failed", error=error))) as client:
        answer = await client.call_tool("generate", LAKE)
        status = await client.call_tool("job_status", {"job_id": JOB_ID})
    assert answer.is_error
    assert text_of(answer) == "It does not fit; list_models lists smaller ones (OOM_ERROR)"
    # The question was answered, so that is not an error.
    assert not status.is_error
    assert status.structured_content["code"] == "OOM_ERROR"


async def test_job_that_another_client_cancelled_is_an_error(tmp_path: Path) -> None:
    async with connected(at_once(tmp_path, end=attrs.evolve(COMPLETED, status="cancelled"))) as client:
        answer = await client.call_tool("generate", LAKE)
    assert answer.is_error
    assert text_of(answer) == f"Job '{JOB_ID}' was cancelled (JOB_CANCELLED)"


async def test_service_that_went_away_leaves_the_job_to_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise Unreachable("The server is gone")

    backend = at_once(tmp_path)
    monkeypatch.setattr(FakeBackend, "job", gone)
    async with connected(backend) as client:
        answer = await client.call_tool("generate", LAKE)
    assert text_of(answer) == f"The server is gone. Job '{JOB_ID}' may go on: job_status tells"
    assert not backend.cancelled.is_set()


async def test_defect_is_told_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("/home/ana/secret")

    monkeypatch.setattr(FakeBackend, "models", fail)
    async with connected(at_once(tmp_path)) as client:
        answer = await client.call_tool("list_models")
    assert answer.is_error
    assert "INTERNAL_ERROR" in text_of(answer)
    assert "secret" not in f"{answer} {caplog.text}"
    assert "tool list_models: ZeroDivisionError" in caplog.text


async def test_calls_at_one_time_are_bounded(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path)
    answers = list[types.CallToolResult]()
    async with connected(backend) as client, trio.open_nursery() as nursery:

        async def call() -> None:
            answers.append(await client.call_tool("generate", LAKE))
            # Only the one that is too many is answered before the jobs end.
            backend.go_on.set()

        for _ in range(MAX_CALLS + 1):
            nursery.start_soon(call)
    assert sum(answer.is_error for answer in answers) == 1
    assert text_of(answers[0]).startswith(f"{MAX_CALLS} calls are under way")


@pytest.mark.parametrize(
    ("shown", "size", "media", "sent"),
    [
        ("thumbnail", 1000, "image/jpeg", 1000),
        ("thumbnail", THUMBNAIL_BYTES * 2, "image/jpeg", THUMBNAIL_BYTES * 2 // 3),
        ("full", FULL_BYTES, "image/png", FULL_BYTES),
        ("full", FULL_BYTES + 2, "image/jpeg", FULL_BYTES // 2 + 2),
        ("full", FULL_BYTES * 3, "image/jpeg", 1000),
    ],
)
async def test_image_in_an_answer_is_the_first_form_that_is_small_enough(
    shown: str, size: int, media: str, sent: int, tmp_path: Path
) -> None:
    backend = at_once(tmp_path, image_bytes=size if shown == "thumbnail" else 1000, whole_bytes=size)
    async with connected(backend) as client:
        answer = await client.call_tool("generate", LAKE | {"image_content": shown})
    (image,) = [block for block in answer.content if isinstance(block, types.ImageContent)]
    assert image.mime_type == media
    assert len(b64decode(image.data)) == sent
    # What is not as it was asked for is said.
    assert bool(answer.structured_content["warnings"]) == (shown == "full" and media == "image/jpeg")


async def test_more_images_than_an_answer_holds_are_files(tmp_path: Path) -> None:
    async with connected(at_once(tmp_path, end=attrs.evolve(COMPLETED, seeds=tuple(range(6))))) as client:
        answer = await client.call_tool("generate", LAKE)
    assert len(answer.structured_content["images"]) == 6
    assert sum(block.type == "image" for block in answer.content) == MAX_IMAGES
    assert answer.structured_content["warnings"] == ["4 of 6 images are in this answer; all have files"]


async def test_image_that_is_gone_is_a_warning_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FakeBackend.file

    async def removed(backend: FakeBackend, job: Any, index: int) -> Path:
        path = await file(backend, job, index)
        if index == 0:
            path.unlink()
        return path

    monkeypatch.setattr(FakeBackend, "file", removed)
    async with connected(at_once(tmp_path, end=attrs.evolve(COMPLETED, seeds=(7, 8)))) as client:
        answer = await client.call_tool("generate", LAKE)
    assert [image["path"] is None for image in answer.structured_content["images"]] == [True, False]
    (warning,) = answer.structured_content["warnings"]
    assert warning == "Image 1 (seed 7): its file cannot be used (no such file or directory)"


async def test_only_images_that_were_named_can_be_read(tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"png")
    async with connected(at_once(tmp_path)) as client:
        assert (await client.list_resources()).resources == []
        answer = await client.call_tool("generate", LAKE)
        (image,) = answer.structured_content["images"]
        (listed,) = (await client.list_resources()).resources
        assert listed.uri == image["uri"]
        for uri in (other.as_uri(), f"{image['uri']}/../{other.name}", "file:///etc/passwd"):
            with pytest.raises(MCPError, match="No image of this session is called so"):
                await client.read_resource(uri)
        os.unlink(image["path"])
        with pytest.raises(MCPError, match="cannot be read \\(no such file or directory\\)"):
            await client.read_resource(image["uri"])


async def test_folders_that_the_client_opened_may_be_read(tmp_path: Path) -> None:
    work, opened = tmp_path / "work", tmp_path / "opened"
    work.mkdir()
    opened.mkdir()
    (opened / "a.png").write_bytes(b"png")
    edit = LAKE | {"init_images": [str(opened / "a.png")]}

    async def roots(context: ClientRequestContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl(opened.as_uri()))])

    backend = at_once(work)
    async with connected(backend, mode="legacy") as client:
        refused = await client.call_tool("edit", edit)
    async with connected(backend, mode="legacy", list_roots_callback=roots) as client:
        made = await client.call_tool("edit", edit)
        above = await client.call_tool("edit", LAKE | {"init_images": [str(opened / ".." / "b.png")]})
    assert "is outside of the folders that may be read" in text_of(refused)
    assert not made.is_error, text_of(made)
    assert "is outside of the folders that may be read" in text_of(above)


async def test_document_names_every_tool_with_its_arguments(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "mcp.md").read_text("utf-8")
    rows = {
        name: set(re.findall(r"`(\w+)`", given)) for name, given in re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.M)
    }
    rows["edit"] |= rows["generate"]
    documented = {
        name: (given - {"generate"}) | ({"image_content", "background"} if name in MAKING else set())
        for name, given in rows.items()
    }
    async with connected(at_once(tmp_path)) as client:
        listed = (await client.list_tools()).tools
    assert documented == {tool.name: set(tool.input_schema["properties"]) for tool in listed}


def test_every_field_of_a_request_is_an_argument_or_left_out_on_purpose() -> None:
    fields = {field.name for field in attrs.fields(GenerateRequest)}
    # Of how answers and queues look, and A1111's and OpenAI's other ways to say the same.
    left_out = {
        "partial_images",
        "priority",
        "webhook",
        "output_format",
        "output_compression",
        "mask_alpha",
        "mask_blur_x",
        "mask_blur_y",
    }
    assert fields - left_out == {*GENERATE, *EDIT, *UPSCALE}


async def test_unknown_tool_is_an_error_of_the_protocol(tmp_path: Path) -> None:
    async with connected(at_once(tmp_path)) as client:
        with pytest.raises(MCPError, match="No tool has this name"):
            await client.call_tool("draw", {})
