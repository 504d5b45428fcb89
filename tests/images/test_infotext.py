"""A1111's infotext."""

from mflux_api.images.infotext import infotext
from tests.support.requests import resolved_request


def test_infotext_has_a1111s_form() -> None:
    request = resolved_request(
        prompt="a lake", negative_prompt="fog", model="demo", seed=7, width=512, height=512, steps=4, guidance=1.0
    )
    lines = infotext(request, 8).splitlines()
    assert lines[:2] == ["a lake", "Negative prompt: fog"]
    assert lines[2].startswith(
        "Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 8, Size: 512x512, Model: demo, Version: "
    )
