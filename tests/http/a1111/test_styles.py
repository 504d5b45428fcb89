"""Styles, infotexts and formats in A1111's dialect: what they make of a call."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from tests.support.harness import runs, settings
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Script

pytestmark = pytest.mark.slow

CSV = 'name,prompt,negative_prompt\nInk,"{prompt}, ink",colour\nPlain,on white,\n'
CALL: dict[str, Any] = {"prompt": "a house", "model": "demo-base", "width": 64, "height": 64, "steps": 1, "n_iter": 1}


def styled(folder: Path) -> Any:
    (folder / "styles.csv").write_text(CSV, "utf-8")
    before = settings(folder)
    return attrs.evolve(before, generation=attrs.evolve(before.generation, styles_file=folder / "styles.csv"))


async def test_styles_are_listed_applied_and_told(tmp_path: Path) -> None:
    script = Script()
    async with scripted_api(tmp_path, script, changed=styled(tmp_path)) as api:
        listed = (await api.http.get("/sdapi/v1/prompt-styles")).json()
        assert listed[0] == {"name": "Ink", "prompt": "{prompt}, ink", "negative_prompt": "colour"}
        for names, prompt, negative, told in (
            (["Ink", "Plain"], "a house, ink, on white", "rain, colour", 0),
            ("Plain", "a house, on white", "rain", 0),
            (["Nope", "Plain"], "a house, on white", "rain", 1),
            ([], "a house", "rain", 0),
            (["None", ""], "a house", "rain", 0),
            (None, "a house", "rain", 0),
        ):
            body = CALL | {"styles": names, "negative_prompt": "rain"}
            answer = (await api.http.post("/sdapi/v1/txt2img", json=body)).json()
            run = runs(script)[-1][0]
            assert (run.prompt, run.negative_prompt) == (prompt, negative)
            assert len([text for text in answer["warnings"] if "style" in text]) == told
            used = [name for name in ([names] if isinstance(names, str) else names or []) if name in ("Ink", "Plain")]
            info = json.loads(answer["info"])
            assert (info["styles"], info["prompt"], answer["parameters"]["styles"]) == (used, prompt, used)


@pytest.mark.parametrize(
    "styles", [{"Ink": 1}, 5, ["Ink", 1], ["Ink"] * 33, "x" * 20_000, ["Double"] * 20], ids=lambda each: str(each)[:20]
)
async def test_styles_that_cannot_be_used_are_an_error_of_their_field(tmp_path: Path, styles: Any) -> None:
    changed = styled(tmp_path)
    (tmp_path / "styles.csv").write_text(CSV + "Double,{prompt} {prompt},\n", "utf-8")
    async with scripted_api(tmp_path, changed=changed) as api:
        answer = await api.http.post("/sdapi/v1/txt2img", json=CALL | {"styles": styles})
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, "styles")


async def test_infotext_fills_in_what_the_fields_leave_out(tmp_path: Path) -> None:
    script = Script()
    said = (
        "a boat\nNegative prompt: rain\nSteps: 3, Sampler: Euler, CFG scale: 2.5, Seed: 77, Size: 80x96, Model: other"
    )
    async with scripted_api(tmp_path, script) as api:
        body = {"infotext": said, "steps": 2, "model": "demo-base"}
        answer = await api.http.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == 200, answer.text
        run = runs(script)[-1][0]
        assert (run.prompt, run.negative_prompt, run.steps, run.guidance) == ("a boat", "rain", 2, 2.5)
        assert (run.seeds, run.width, run.height) == ((77,), 80, 96)
        body = {"infotext": said.replace("77", "abc"), "negative_prompt": "", "guidance": 1.5, "model": "demo-base"}
        answer = await api.http.post("/sdapi/v1/txt2img", json=body | {"steps": 1})
        assert (answer.status_code, answer.json()["warnings"]) == (200, [])
        run = runs(script)[-1][0]
        assert (run.negative_prompt, run.guidance) == ("", 1.5)


async def test_infotext_names_the_model_and_the_strength_and_what_is_not_here_is_told(tmp_path: Path) -> None:
    script = Script()
    said = "a boat\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 1, Seed: 7, Size: 64x64, Denoising strength: 0.5, Model: "
    images = {"init_images": [to_base64(scene((64, 64)))]}
    async with scripted_api(tmp_path, script) as api:
        answer = (await api.http.post("/sdapi/v1/img2img", json={"infotext": said + "demo-base", **images})).json()
        assert (answer["parameters"]["model"], answer["parameters"]["denoising_strength"]) == ("demo-base", 0.5)
        assert answer["warnings"] == ["'sampler_name' has no effect: the sampler is Euler"]
        await api.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo"})
        other = {"infotext": said + "v1-5-pruned", "sampler_name": "Euler", "sd_model_checkpoint": None}
        told = (await api.http.post("/sdapi/v1/txt2img", json=other)).json()
        assert told["warnings"] == ["The model that 'infotext' names is not one of this server"]
        assert (told["parameters"]["model"], told["parameters"]["denoising_strength"]) == ("demo", None)


@pytest.mark.parametrize(("wanted", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG"), (None, "PNG")])
async def test_images_of_the_answer_have_the_format_of_the_settings(
    tmp_path: Path, wanted: str | None, kind: str
) -> None:
    async with scripted_api(tmp_path) as api:
        body = CALL | {"override_settings": {"samples_format": wanted}}
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body)).json()
        image = Image.open(BytesIO(base64.b64decode(answer["images"][0])))
        assert image.format == kind
        assert answer["warnings"] == []


async def test_format_that_is_asked_for_twice_is_told(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        body = CALL | {"override_settings": {"samples_format": "png"}, "output_format": "jpeg"}
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body)).json()
        assert base64.b64decode(answer["images"][0]).startswith(b"\xff\xd8")
        assert "samples_format" in "".join(answer["warnings"])
