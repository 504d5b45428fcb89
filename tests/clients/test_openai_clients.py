"""OpenAI's SDK for Python and packages over it: generate, edit, stream, and what they do with errors."""

import asyncio
import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI

from tests.clients.running import SIDE, Running, image, mask, opened, right_half

SIZE = f"{SIDE}x{SIDE}"
QUICK: dict[str, Any] = {"seed": 7, "steps": 2}
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.openai, api_key=server.any_key, max_retries=0) as found:
        yield found


def first(answer: Any) -> Any:
    return opened(answer.data[0].b64_json)


def test_models_are_listed_and_their_built_in_names_stand_for_the_default(client: OpenAI) -> None:
    assert "demo" in [model.id for model in client.models.list()]
    assert [client.models.retrieve(name).id for name in ("demo", "dall-e-3")] == ["demo", "dall-e-3"]


def test_one_call_makes_several_images_with_usage(client: OpenAI) -> None:
    made = client.images.generate(model="demo", prompt="a lake", n=2, size=SIZE, extra_body=QUICK)
    assert [opened(item.b64_json or "").size for item in made.data or []] == [(SIDE, SIDE)] * 2
    assert (made.size, made.output_format, made.background) == (SIZE, "png", "opaque")
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert (made.model_extra or {})["warnings"] == []


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_url_is_readable_without_a_key(client: OpenAI, kind: Any) -> None:
    made = client.images.generate(
        model="demo", prompt="a lake", size=SIZE, response_format="url", output_format=kind, extra_body=QUICK
    )
    assert made.data is not None
    answer = requests.get(made.data[0].url or "", timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"image/{kind}")
    assert opened(answer.content).size == (SIDE, SIDE)


def test_what_cannot_be_done_is_told_in_warnings(client: OpenAI) -> None:
    made = client.images.generate(
        model="gpt-image-1", prompt="a lake", size="250x250", style="vivid", quality="low", background="auto"
    )
    assert first(made).size == (256, 256)
    told = " ".join((made.model_extra or {})["warnings"])
    assert "'size' 250x250" in told
    assert "'style' has no effect" in told


def test_edit_changes_only_what_is_transparent_in_the_mask(client: OpenAI, png: bytes) -> None:
    made = client.images.edit(
        model="demo", image=png, mask=("mask.png", mask(), "image/png"), prompt="a red house", extra_body=QUICK
    )
    assert right_half(first(made)) == right_half(opened(png))
    assert first(made).convert("RGB").tobytes() != opened(png).tobytes()


def test_edit_takes_several_images(client: OpenAI) -> None:
    files = [BytesIO(image()), BytesIO(image(colour="red"))]
    for file, name in zip(files, "ab", strict=True):
        file.name = f"{name}.png"
    made = client.images.edit(model="demo", image=files, prompt="both in ink", size=SIZE, n=2)
    assert [opened(item.b64_json or "").size for item in made.data or []] == [(SIDE, SIDE)] * 2


@pytest.mark.parametrize("partial", [0, 2])
def test_stream_has_partial_images_and_ends_with_one_completed(client: OpenAI, partial: int) -> None:
    events = list(client.images.generate(model="demo", prompt="a lake", size=SIZE, stream=True, partial_images=partial))
    assert [event.type for event in events] == [PARTIAL] * partial + [COMPLETED]
    assert {opened(event.b64_json).size for event in events} == {(SIDE, SIDE)}
    assert [event.partial_image_index for event in events if event.type == PARTIAL] == [*range(partial)]


def test_edits_stream_too(server: Running, png: bytes) -> None:
    async def kinds() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.openai, api_key=server.any_key, max_retries=0) as client:
            stream = await client.images.edit(model="demo", image=png, prompt="in ink", stream=True, partial_images=1)
            return [event.type async for event in stream]

    told = asyncio.run(kinds())
    assert told[-1] == "image_edit.completed"
    assert set(told[:-1]) <= {"image_edit.partial_image"}


@pytest.mark.parametrize(
    ("asked", "error", "code", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found", "model"),
        ({"prompt": ""}, openai.BadRequestError, "invalid_parameter", "prompt"),
        ({"size": "9x9"}, openai.BadRequestError, "invalid_parameter", "size"),
        ({"n": 99}, openai.BadRequestError, "invalid_parameter", "n"),
        ({"background": "transparent"}, openai.BadRequestError, "invalid_parameter", "background"),
        ({"quality": "superb"}, openai.BadRequestError, "invalid_parameter", "quality"),
    ],
)
def test_errors_are_the_sdks_own(client: OpenAI, asked: Any, error: Any, code: str, param: str) -> None:
    with pytest.raises(error) as raised:
        client.images.generate(**{"prompt": "a lake", "size": SIZE} | asked)
    assert (raised.value.code, raised.value.param) == (code, param)
    assert param in raised.value.body["message"]


def test_wrong_key_is_refused(server: Running) -> None:
    if server.key is None:
        pytest.skip("this server has no keys")
    with pytest.raises(openai.AuthenticationError) as raised:
        OpenAI(base_url=server.openai, api_key="wrong" * 5).images.generate(prompt="a lake")
    assert raised.value.code == "invalid_api_key"


def test_what_fails_again_is_not_tried_again(server: Running) -> None:
    asked = 0

    def count(_: Any) -> None:
        nonlocal asked
        asked += 1

    http = openai.DefaultHttpxClient(event_hooks={"request": [count]})
    client = OpenAI(base_url=server.openai, api_key=server.any_key, http_client=http)
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(openai.APIStatusError) as raised:
        client.images.create_variation(image=image())
    assert "edits" in raised.value.body["message"]
    assert asked == 1


def test_same_idempotency_key_is_one_job(client: OpenAI, server: Running) -> None:
    before = len(server.jobs())
    headers = {"Idempotency-Key": f"tried with the SDK at {server.port}"}
    made = [
        client.images.generate(model="demo", prompt="a lake", size=SIZE, extra_headers=headers, extra_body={"steps": 2})
        for _ in range(2)
    ]
    assert made[0].data == made[1].data
    assert len(server.jobs()) - before == 1


def test_call_that_is_given_up_is_cancelled(client: OpenAI, server: Running) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(model="demo", prompt="a lake", size="512x512", extra_body={"steps": 200}, timeout=1)
    assert server.eventually_newest("cancelled")


def test_litellm_generates_and_edits(server: Running, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    where = {"model": "openai/demo", "api_base": server.openai, "api_key": server.any_key}
    made = litellm.image_generation(prompt="a lake", size=SIZE, n=2, **where)
    assert [opened(item.b64_json).size for item in made.data] == [(SIDE, SIDE)] * 2
    edited = litellm.image_edit(image=[BytesIO(png)], prompt="in ink", **where)
    assert opened(edited.data[0].b64_json).size == (SIDE, SIDE)
    with pytest.raises(litellm.exceptions.NotFoundError, match="nope"):
        litellm.image_generation(prompt="a lake", **where | {"model": "openai/nope"})


def test_haystack_generates(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack.components.generators import OpenAIImageGenerator
    from haystack.utils import Secret

    made = OpenAIImageGenerator(
        model="demo", size=SIZE, api_key=Secret.from_token(server.any_key), api_base_url=server.openai
    ).run("a lake")
    assert opened(made["images"][0]).size == (SIDE, SIDE)


def test_semantic_kernel_generates_and_edits(server: Running, png: bytes) -> None:
    from semantic_kernel.connectors.ai.open_ai import OpenAITextToImage, OpenAITextToImageExecutionSettings

    async def both() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=server.openai, api_key=server.any_key) as client:
            service = OpenAITextToImage(ai_model_id="demo", async_client=client)
            small = OpenAITextToImageExecutionSettings(width=256, height=256, quality="low", n=2)
            edits = OpenAITextToImageExecutionSettings(n=1)
            return (
                await service.generate_images("a lake", settings=small),
                await service.edit_image("in ink", image_files=[BytesIO(png)], settings=edits),
            )

    made, edited = asyncio.run(both())
    assert [opened(text).size for text in made] == [(256, 256)] * 2
    assert opened(edited[0]).size == (SIDE, SIDE)


def test_griptape_generates_and_inpaints(server: Running, png: bytes) -> None:
    from griptape.artifacts import ImageArtifact
    from griptape.drivers.image_generation.openai import OpenAiImageGenerationDriver

    driver = OpenAiImageGenerationDriver(
        model="dall-e-2", base_url=server.openai, api_key=server.any_key, image_size="256x256", quality="standard"
    )
    assert opened(driver.run_text_to_image(["a lake"]).value).size == (256, 256)

    def artifact(data: bytes) -> ImageArtifact:
        return ImageArtifact(value=data, format="png", width=256, height=256)

    inpainted = driver.run_image_inpainting(["a red house"], artifact(image(256)), artifact(mask(256)))
    assert right_half(opened(inpainted.value)) == right_half(opened(image(256)))


def test_agno_has_the_image_and_its_url(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai)
    from agno.tools.dalle import DalleTools
    from agno.tools.openai import OpenAITools

    made = OpenAITools(api_key=server.any_key, image_model="demo", image_size="256x256").generate_image("a lake")
    assert opened(made.images[0].content).size == (256, 256)
    shown = DalleTools(api_key=server.any_key, size="256x256").create_image("a lake")
    assert opened(requests.get(shown.images[0].url, timeout=30).content).size == (256, 256)


def test_langchain_dalle_wrapper_has_a_url(server: Running) -> None:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    told = DallEAPIWrapper(model="dall-e-3", base_url=server.openai, api_key=server.any_key, size="256x256").run(
        "a lake"
    )
    assert opened(requests.get(told, timeout=30).content).size == (256, 256)


def test_files_of_an_edit_may_be_paths(client: OpenAI, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png)
    made = client.images.edit(model="demo", image=tmp_path / "photo.png", prompt="in ink", response_format="b64_json")
    assert base64.b64decode((made.data or [])[0].b64_json or "")[:4] == b"\x89PNG"
