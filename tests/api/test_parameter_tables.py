"""The parameter tables of the API document, row by row: each field has its documented effect and default.

Where the service does something else, or more, than the table's words say, the row is in ``DEVIATIONS``.
"""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from mflux_api.config import GenerationSettings, ModelSettings
from tests.support.server import ROOT

pytestmark = pytest.mark.slow

TABLE = """
prompt | string | required
model | string | flux2-klein-4b
sd_model_checkpoint | string | -
seed | int/null | null
width | int | 512
height | int | 512
steps | int | 4
guidance | float | 1.0
num_images | int | 1
lora_files | array | []
lora_scales | array | []
low_ram | bool | false
init_images | array | required
image_strength | float | 0.75
"""
"""The document's fields with type and default: txt2img's, then what img2img has besides."""

ROWS: dict[str, tuple[str, str]] = {
    name: (kind, default) for name, kind, default in (line.split(" | ") for line in TABLE.strip().splitlines())
}

DEVIATIONS = {
    "model": "the default is the setting models.default, whose own default is the documented one",
    "width": "with init images the default is the first one's, snapped to 16 and at most 1 MP",
    "height": "as width",
    "steps": "base models run 50 by default, which 4 steps would leave as noise; 1 to 200 are taken",
    "guidance": "base models run at 4.0 by default; the distilled at 1.0 whatever is asked",
    "num_images": "the limit of 4 is the setting generation.max_batch_size",
    "lora_files": "names or paths of files in lora.dirs, and no others",
    "lora_scales": "missing ones are 1.0; more than files are an error",
    "init_images": "one to four",
    "image_strength": "0 keeps the image, 1 ignores its pixels; mflux's own parameter of this name is the opposite",
}

SMALL: dict[str, Any] = {"prompt": "a tree", "model": "demo", "seed": 4, "width": 64, "height": 64, "steps": 1}


def ask(client: httpx.Client, *omitted: str, path: str = "txt2img", **fields: Any) -> dict[str, Any]:
    body = {name: value for name, value in {**SMALL, **fields}.items() if name not in omitted}
    answer = client.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text[:300]
    found: dict[str, Any] = answer.json()
    return found


def image(answer: dict[str, Any], index: int = 0) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(answer["images"][index]))).convert("RGB")


def pixels(answer: dict[str, Any]) -> bytes:
    return image(answer).tobytes()


def init_image() -> str:
    buffer = BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# --- effects ---


def prompt(client: httpx.Client) -> None:
    assert pixels(ask(client, prompt="a red house", steps=4)) != pixels(ask(client, steps=4))
    assert ask(client, prompt="  a tree ")["parameters"]["prompt"] == "a tree"


def model(client: httpx.Client) -> None:
    base = ask(client, model="demo-base")
    assert base["parameters"]["model"] == "demo-base"
    assert pixels(base) != pixels(ask(client))


def sd_model_checkpoint(client: httpx.Client) -> None:
    named = ask(client, "model", sd_model_checkpoint="demo-base")
    assert named["parameters"]["model"] == "demo-base"
    assert ask(client, sd_model_checkpoint="demo-base")["parameters"]["model"] == "demo"


def seed(client: httpx.Client) -> None:
    assert pixels(ask(client, seed=5)) != pixels(ask(client))
    assert pixels(ask(client)) == pixels(ask(client))


def width(client: httpx.Client) -> None:
    assert image(ask(client, width=96)).size == (96, 64)


def height(client: httpx.Client) -> None:
    assert image(ask(client, height=96)).size == (64, 96)


def steps(client: httpx.Client) -> None:
    two = ask(client, steps=2)
    assert two["parameters"]["steps"] == 2
    assert pixels(two) != pixels(ask(client))


def guidance(client: httpx.Client) -> None:
    weak, strong = (ask(client, model="demo-base", guidance=value, steps=2) for value in (1.5, 6.0))
    assert (weak["parameters"]["guidance"], strong["parameters"]["guidance"]) == (1.5, 6.0)
    assert pixels(weak) != pixels(strong)
    assert pixels(ask(client, guidance=6.0)) == pixels(ask(client))


def num_images(client: httpx.Client) -> None:
    four = ask(client, num_images=4)
    assert len({image(four, index).tobytes() for index in range(4)}) == 4
    assert four["info"].startswith("Generated 4 image(s) in ")


def lora_files(client: httpx.Client) -> None:
    one, two = (ask(client, lora_files=[name]) for name in ("one", "two"))
    assert len({pixels(one), pixels(two), pixels(ask(client))}) == 3
    assert one["parameters"]["lora_files"] == ["one.safetensors"]


def lora_scales(client: httpx.Client) -> None:
    half = ask(client, lora_files=["one"], lora_scales=[0.5])
    assert pixels(half) not in (pixels(ask(client, lora_files=["one"])), pixels(ask(client)))


def low_ram(client: httpx.Client) -> None:
    """One image at a time, where otherwise two share each step; the images stay the same, to a level."""
    assert ask(client, low_ram=True)["parameters"]["low_ram"] is True
    generated: dict[bool, list[Image.Image]] = {}
    counted: dict[bool, set[int]] = {}
    for value in (False, True):
        body = {**SMALL, "num_images": 2, "low_ram": value}
        url = f"/api/v1/jobs/{client.post('/api/v1/generate', json=body).json()['job_id']}/stream"
        with client.stream("GET", url, headers={"Last-Event-ID": "unknown"}) as stream:
            events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
        counted[value] = {event["image"] for event in events[:-1] if event["stage"] == "denoising"}
        generated[value] = [image(events[-1]["result"], index) for index in range(2)]
    assert counted == {False: {0}, True: {0, 1}}
    for one, other in zip(*generated.values(), strict=True):
        assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1


def init_images(client: httpx.Client) -> None:
    edit = ask(client, path="img2img", init_images=[init_image()])
    assert pixels(edit) != pixels(ask(client))
    assert pixels(ask(client, init_images=[init_image()])) == pixels(ask(client)), "txt2img takes none"


def image_strength(client: httpx.Client) -> None:
    made = [
        ask(client, path="img2img", init_images=[init_image()], steps=4, image_strength=value) for value in (0, 0.5, 1)
    ]
    assert [answer["parameters"]["steps_run"] for answer in made] == [0, 2, 4]
    assert len({pixels(answer) for answer in made}) == 3


EFFECTS: dict[str, Callable[[httpx.Client], None]] = {
    effect.__name__: effect
    for effect in (
        prompt, model, sd_model_checkpoint, seed, width, height, steps, guidance, num_images, lora_files, lora_scales,
        low_ram, init_images, image_strength,
    )
}  # fmt: skip


@pytest.mark.parametrize("field", ROWS)
def test_field_has_its_documented_effect(client: httpx.Client, field: str) -> None:
    EFFECTS[field](client)


# --- defaults ---


def given(field: str, value: Any) -> dict[str, Any]:
    return {field: value}


@pytest.mark.parametrize("field", [name for name, (_, default) in ROWS.items() if default == "required"])
def test_required_field_is_required(client: httpx.Client, field: str) -> None:
    body = {**SMALL, "init_images": [init_image()]}
    for missing in ({}, {field: None}):
        answer = client.post("/sdapi/v1/img2img", json={k: v for k, v in body.items() if k != field} | missing)
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)


@pytest.mark.parametrize(
    "field", ["width", "height", "steps", "guidance", "num_images", "lora_files", "lora_scales", "low_ram"]
)
def test_omitted_field_and_null_are_its_documented_default(client: httpx.Client, field: str) -> None:
    default = json.loads(ROWS[field][1])
    omitted, null, said = ask(client, field), ask(client, **given(field, None)), ask(client, **given(field, default))
    assert omitted["parameters"][field] == default
    assert omitted["images"] == null["images"] == said["images"]


def test_image_strength_omitted_is_its_documented_default(client: httpx.Client) -> None:
    edit: dict[str, Any] = {"path": "img2img", "init_images": [init_image()], "steps": 4}
    omitted, said = ask(client, **edit), ask(client, **edit, image_strength=json.loads(ROWS["image_strength"][1]))
    assert omitted["parameters"]["image_strength"] == 0.75
    assert omitted["images"] == said["images"]


def test_seed_omitted_or_null_is_random(client: httpx.Client) -> None:
    chosen = [ask(client, "seed")["parameters"]["seed"], ask(client, seed=None)["parameters"]["seed"]]
    assert len(set(chosen)) == 2


def test_model_omitted_is_the_setting_whose_default_is_documented(client: httpx.Client) -> None:
    assert ModelSettings().default == ROWS["model"][1]
    # The server of these tests has models.default = "demo".
    assert ask(client, "model")["images"] == ask(client)["images"]


def test_settings_defaults_are_the_documented_ones() -> None:
    generation = GenerationSettings()
    assert (generation.default_steps, generation.max_batch_size) == (int(ROWS["steps"][1]), 4)


# --- the tables themselves ---


def test_every_row_has_its_effect_and_deviations_are_of_rows() -> None:
    assert list(EFFECTS) == list(ROWS)
    assert set(DEVIATIONS) <= set(ROWS)


def test_every_row_is_in_openapi_and_in_the_docs(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    for field in ROWS:
        assert f"`{field}`" in text
        # A name that SD-WebUI has for one of ours.
        assert field in schema or field == "sd_model_checkpoint"


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", "4"), ("width", "64"), ("steps", "1"), ("guidance", "2"), ("num_images", "1"), ("low_ram", "true"),
     ("image_strength", "0.5")],
)  # fmt: skip
def test_numeric_strings_are_taken_in_a1111s_dialect_alone(client: httpx.Client, field: str, value: str) -> None:
    body = {**SMALL, "init_images": [init_image()], field: value}
    refused = client.post("/sdapi/v1/img2img", json=body)
    assert (refused.status_code, refused.json()["details"]["field"]) == (400, field)
    refused = client.post("/api/v1/generate", json={**body, "sampler_name": "Euler"})
    assert (refused.status_code, refused.json()["details"]["field"]) == (400, field)
    taken = client.post("/sdapi/v1/img2img", json={**body, "sampler_name": "Euler"})
    assert taken.status_code == 200, taken.text[:300]
