"""LoRAs from the outside: the list, uploads, what they do to images, and that they never mix."""

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.lora_files import lora_bytes
from tests.support.server import Server, api_client, engine_of, serving

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"prompt": "a tree", "seed": 4, "model": "demo", "width": 64, "height": 64, "steps": 1}
UNIFORM = "'lora_files' is invalid: expected the name of a .safetensors file in lora.dirs; GET /api/v1/loras lists them"


def generate(client: httpx.Client, **fields: Any) -> str:
    answer = client.post("/sdapi/v1/txt2img", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["images"][0])


def names(client: httpx.Client) -> list[str]:
    return [lora["name"] for lora in client.get("/api/v1/loras").json()["loras"]]


def test_list_has_every_file_with_its_size(client: httpx.Client) -> None:
    listed = {lora["name"]: lora for lora in client.get("/api/v1/loras").json()["loras"]}
    assert {"one.safetensors", "two.safetensors", "styles/three.safetensors"} <= set(listed)
    assert listed["one.safetensors"]["size_bytes"] == len(lora_bytes(1))
    assert listed["one.safetensors"]["modified_at"].endswith("Z")


def test_list_says_what_each_file_holds(client: httpx.Client, server: Server) -> None:
    broken = server.folder / "loras" / "broken.safetensors"
    broken.write_bytes(lora_bytes(1)[:-1])
    try:
        listed = {lora["name"]: lora for lora in client.get("/api/v1/loras").json()["loras"]}
    finally:
        broken.unlink()
    contents = {"format": "lora", "rank": 2, "layers": 3, "layers_understood": 3, "text_encoder_layers": 0}
    assert listed["one.safetensors"].items() >= {**contents, "unknown": [], "problem": None}.items()
    assert listed["broken.safetensors"].items() >= {**dict.fromkeys(contents), "unknown": []}.items()
    assert "a part of it is missing" in listed["broken.safetensors"]["problem"]


def test_one_name_that_is_not_utf_8_is_listed_escaped_and_hides_no_other(client: httpx.Client, server: Server) -> None:
    """It made the list an internal error for everybody."""
    path = server.folder / "loras" / os.fsdecode(b"bad\xff.safetensors")
    try:
        path.write_bytes(lora_bytes(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    try:
        listed = client.get("/api/v1/loras").json()
        refused = client.post("/api/v1/generate", json={**SMALL, "lora_files": ["bad"]}).json()
    finally:
        path.unlink()
    assert "one.safetensors" in [lora["name"] for lora in listed["loras"]]
    assert {"name": r"bad\xff.safetensors", "reason": listed["skipped"][0]["reason"]} in listed["skipped"]
    assert (listed["skipped_total"], refused["code"]) == (1, "INVALID_PARAMETER")


def pixels(text: str) -> bytes:
    return Image.open(BytesIO(base64.b64decode(text))).tobytes()


def test_loras_change_images_by_their_scale_together_and_leave_no_trace(client: httpx.Client) -> None:
    plain = generate(client)
    one = generate(client, lora_files=["one"])
    weak = generate(client, lora_files=["one"], lora_scales=[0.3])
    both = generate(client, lora_files=["one", "styles/three.safetensors"], lora_scales=[1.0])
    assert len({pixels(image) for image in (plain, one, weak, both)}) == 4
    assert pixels(generate(client, lora_files=["one"], lora_scales=[0])) == pixels(plain)
    assert generate(client) == plain
    assert generate(client, lora_files=["one.safetensors"], lora_scales=[1.0]) == one


def test_tag_in_the_prompt_is_the_field(client: httpx.Client) -> None:
    field = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["one"], "lora_scales": [0.7]}).json()
    tag = client.post("/sdapi/v1/txt2img", json={**SMALL, "prompt": "a tree <lora:one:0.7>"}).json()
    assert tag["images"] == field["images"]
    expected = {"prompt": "a tree", "lora_files": ["one.safetensors"], "lora_scales": [0.7]}
    assert tag["parameters"].items() >= expected.items()


def test_scale_below_zero_is_the_other_direction(client: httpx.Client) -> None:
    """Sliders are LoRAs that are meant to be used in both directions."""
    images = [generate(client, lora_files=["one"], lora_scales=[scale]) for scale in (-4.0, -1.0, 1.0)]
    assert len({pixels(image) for image in (*images, generate(client))}) == 4
    assert generate(client, prompt="a tree <lyco:one:-1>") == images[1]


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/api/v1/generate"])
def test_what_of_a_tag_has_no_effect_is_in_the_warnings(client: httpx.Client, path: str) -> None:
    prompt = "a tree <hypernet:anime:1> <lora:one:0.3:0.8>"
    warnings = client.post(path, json={**SMALL, "prompt": prompt}).json()["warnings"]
    assert [warning[: warning.index(">") + 2] for warning in warnings] == [
        "'<hypernet:anime:1>'",
        "'<lora:one:0.3:0.8>'",
    ]


def test_a1111s_infotext_shows_the_tag_again(client: httpx.Client) -> None:
    body = {**SMALL, "prompt": "a <lora:one:0.5> tree", "sampler_name": "Euler"}
    info = json.loads(client.post("/sdapi/v1/txt2img", json=body).json()["info"])
    assert info["infotexts"][0].startswith("a tree <lora:one:0.5>\nSteps: 1,")
    assert info["prompt"] == "a tree"


@pytest.mark.parametrize("name", ["nothing", "../one", "/etc/passwd", "one\0", "owner/repo", "", "..%2fone", "\ud800"])
@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/api/v1/generate"])
def test_other_names_are_one_uniform_error(client: httpx.Client, path: str, name: str) -> None:
    answer = client.post(path, content=json.dumps({**SMALL, "lora_files": ["one", name]}))
    if name == "\ud800":
        # No JSON text holds half a character.
        assert answer.status_code == 400
        return
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["error"].partition("; close to it: ")[0] == UNIFORM


def test_unknown_name_in_a_tag_is_the_same_error(client: httpx.Client) -> None:
    answer = client.post("/api/v1/generate", json={**SMALL, "prompt": "a <lora:nothing:1> tree"})
    assert (answer.status_code, answer.json()["error"]) == (400, UNIFORM)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"lora_files": ["one"], "lora_scales": [1, 1]}, "lora_scales"),
        ({"lora_scales": [1]}, "lora_scales"),
        ({"lora_files": ["one"], "lora_scales": [4.5]}, "lora_scales"),
        ({"lora_files": ["one"], "lora_scales": [-4.5]}, "lora_scales"),
        ({"lora_files": ["one"] * 17}, "lora_files"),
        ({"lora_files": "one"}, "lora_files"),
        ({"prompt": "a <lora:one:5>"}, "prompt"),
    ],
)
def test_limits_of_loras(client: httpx.Client, fields: dict[str, Any], field: str) -> None:
    answer = client.post("/api/v1/generate", json={**SMALL, **fields})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)


def test_concurrent_requests_with_different_loras_and_models_never_mix(client: httpx.Client, server: Server) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"lora_files": ["one"]},
        {"lora_files": ["two"]},
        {"lora_files": ["one", "two"], "lora_scales": [0.4, 0.9]},
        {"prompt": "a tree <lora:styles/three:0.8>"},
        {"model": "demo-base", "guidance": 3.0, "lora_files": ["one"]},
    ]
    alone = [generate(client, **variant) for variant in variants]
    assert len({pixels(image) for image in alone}) == len(variants)

    def one(index: int) -> str:
        with api_client(server.url) as own:
            return generate(own, **variants[index % len(variants)])

    with ThreadPoolExecutor(len(variants)) as threads:
        together = list(threads.map(one, range(2 * len(variants))))
    assert together == alone * 2


def test_loras_work_on_a_quantized_base_and_leave_no_trace(client: httpx.Client) -> None:
    quantized = {"model": "flux2-klein-4b-4-bit"}
    plain, styled = generate(client, **quantized), generate(client, **quantized, lora_files=["one"])
    assert pixels(plain) != pixels(styled)
    assert generate(client, **quantized) == plain


# --- uploads ---


def test_uploaded_file_can_be_used_at_once(client: httpx.Client) -> None:
    answer = client.post("/api/v1/loras", params={"name": "by-body"}, content=lora_bytes(11))
    assert answer.status_code == 200, answer.text
    assert (
        answer.json().items()
        >= {
            "name": "by-body.safetensors",
            "size_bytes": len(lora_bytes(11)),
            "format": "lora",
            "layers_understood": 3,
        }.items()
    )
    assert "by-body.safetensors" in names(client)
    assert generate(client, lora_files=["by-body"]) != generate(client)


def test_upload_as_a_form_takes_the_files_own_name(client: httpx.Client) -> None:
    content = lora_bytes(1)
    answer = client.post("/api/v1/loras", files={"file": ("by-form.safetensors", content)})
    assert (answer.status_code, answer.json()["name"]) == (200, "by-form.safetensors")
    named = client.post("/api/v1/loras", files={"file": ("x", content)}, data={"name": "by-field"})
    assert (named.status_code, named.json()["name"]) == (200, "by-field.safetensors")
    assert pixels(generate(client, lora_files=["by-form"])) == pixels(generate(client, lora_files=["one"]))


def test_taken_name_needs_overwrite(client: httpx.Client) -> None:
    def post(**query: str) -> httpx.Response:
        return client.post("/api/v1/loras", params={"name": "again", **query}, content=lora_bytes(12))

    assert post().status_code == 200
    assert (post().status_code, post().json()["details"]["field"]) == (400, "name")
    assert post(overwrite="true").status_code == 200
    assert post(overwrite="yes").json()["details"]["field"] == "overwrite"


@pytest.mark.parametrize(
    ("query", "content", "field"),
    [
        ({}, b"x", "name"),
        ({"name": "../a"}, b"x", "name"),
        ({"name": "a/b"}, b"x", "name"),
        ({"name": ""}, b"x", "name"),
        ({"name": "a"}, b"", "file"),
        ({"name": "a"}, b"no tensors", "file"),
        ({"name": "a"}, lora_bytes(1)[:-1], "file"),
    ],
)
def test_bad_upload_is_refused_and_leaves_nothing(
    client: httpx.Client, server: Server, query: dict[str, str], content: bytes, field: str
) -> None:
    before = sorted(path.name for path in (server.folder / "loras").iterdir())
    answer = client.post("/api/v1/loras", params=query, content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["details"]["field"] == field
    assert sorted(path.name for path in (server.folder / "loras").iterdir()) == before


def test_form_without_a_file_or_with_a_bad_name_is_refused(client: httpx.Client) -> None:
    nothing = client.post("/api/v1/loras", files={"other": ("a", b"x")})
    assert (nothing.status_code, nothing.json()["details"]["field"]) == (400, "file")
    bad = client.post("/api/v1/loras", files={"file": ("../../a.safetensors", lora_bytes(1))})
    assert (bad.status_code, bad.json()["details"]["field"]) == (400, "name")


def test_lora_for_another_model_is_refused_by_name_when_it_runs(client: httpx.Client) -> None:
    from safetensors.numpy import save

    from tests.support.lora_files import lora_tensors

    tensors = {name: tensor[:, :3] if "lora_A" in name else tensor for name, tensor in lora_tensors(1).items()}
    client.post("/api/v1/loras", params={"name": "foreign"}, content=save(tensors)).raise_for_status()
    answer = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["foreign"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert "foreign.safetensors" in answer.json()["error"]
    assert answer.json()["details"].keys() == {"field", "value", "limit"}
    assert generate(client) == generate(client)


SPELLINGS = {
    "bare": ("", False, "lora_A", "lora_B"),
    "peft": ("base_model.model.", False, "lora_A.default.weight", "lora_B.default.weight"),
    "kohya": ("lora_unet_", True, "lora_down.weight", "lora_up.weight"),
    "onetrainer": ("lora_transformer_", True, "lora_down.weight", "lora_up.weight"),
}


def spelled(seed: int, spelling: str) -> dict[str, Any]:
    """The tensors of a LoRA in another spelling, with BFL's names where a layer has one of its own."""
    from tests.support.lora_files import lora_tensors

    prefix, underscores, down, up = SPELLINGS[spelling]
    bfl = {"single_transformer_blocks.0.attn.to_out": "single_blocks.0.linear2", "x_embedder": "img_in"}
    found = {}
    for name, tensor in lora_tensors(seed).items():
        layer, _, part = name.removeprefix("transformer.").rpartition(".lora_")
        layer = bfl.get(layer, layer)
        layer = layer.replace(".", "_") if underscores else layer
        found[f"{prefix}{layer}.{down if part.startswith('A') else up}"] = tensor
    return found


def test_every_spelling_of_a_lora_is_the_same_image(client: httpx.Client, server: Server) -> None:
    from safetensors.numpy import save_file

    expected = generate(client, lora_files=["one"], lora_scales=[0.5])
    for spelling in SPELLINGS:
        path = server.folder / "loras" / "spelled.safetensors"
        save_file(spelled(1, spelling), str(path))
        found = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["spelled"], "lora_scales": [0.5]})
        path.unlink()
        assert found.json()["warnings"] == [], spelling
        assert pixels(found.json()["images"][0]) == pixels(expected), spelling


def test_what_of_a_lora_is_not_used_is_told_with_the_answer_and_in_the_job(
    client: httpx.Client, server: Server
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    others = {f"{name}.lora_A.weight": np.ones((2, 2)) for name in ("no.such.layer", "text_encoder.layers.0.mlp")}
    path = server.folder / "loras" / "partly.safetensors"
    save_file(spelled(1, "kohya") | others, str(path))
    try:
        answer = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["partly"]}).json()
        # The second time the adapters are prepared already.
        again = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["partly"]}).json()
    finally:
        path.unlink()
    assert answer["warnings"] == again["warnings"]
    assert answer["warnings"] == [
        "The LoRA partly.safetensors is used in part: one of its names is not known or not supported: no.such.layer.",
        "The LoRA partly.safetensors is used in part: its one text-encoder layer is not used, only the transformer's.",
    ]
    job = client.get("/api/v1/jobs").json()["jobs"][0]
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["warnings"] == answer["warnings"]
    assert pixels(answer["images"][0]) == pixels(generate(client, lora_files=["one"]))


def lora_of(name: str, dtype: str = "F32") -> bytes:
    """A file with one tensor of that name."""
    text = json.dumps({name: {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


BLOCK = "transformer.transformer_blocks.{}.attn.to_q.lora_A.weight"
HOSTILE = {
    "long": lora_of(BLOCK.format("0" * 2_000_000), "I32"),
    "digits": lora_of(BLOCK.format("1" * 5_000)),
    "terminal": lora_of("\x1b[31m\u202e\n\x00", "U32"),
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
}


def test_loras_made_to_do_harm_cost_their_jobs_and_no_others(client: httpx.Client, server: Server) -> None:
    engine = engine_of(server)
    for name, content in HOSTILE.items():
        (server.folder / "loras" / f"{name}.safetensors").write_bytes(content)
    try:
        for name in HOSTILE:
            refused = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": [name]})
            assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_PARAMETER")
            assert refused.json()["error"].isprintable()
            assert len(refused.json()["error"]) < 600
            assert generate(client, lora_files=["one"])
    finally:
        for name in HOSTILE:
            (server.folder / "loras" / f"{name}.safetensors").unlink()
    assert engine_of(server).pid == engine.pid


def test_upload_over_its_limit_is_refused_and_a_larger_one_than_a_json_body_is_not(tmp_path: Path) -> None:
    config = '[models]\ndefault = "demo"\n[lora]\nmax_upload_mb = 70\n'
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        header = {"__metadata__": {"x": ""}, "a": {"dtype": "F16", "shape": [2**25], "data_offsets": [0, 2**26]}}
        text = json.dumps(header).encode()
        whole = len(text).to_bytes(8, "little") + text + bytes(2**26)
        assert client.post("/api/v1/loras", params={"name": "large"}, content=whole).status_code == 200
        over = bytes(71 * 2**20)
        bodies: list[dict[str, Any]] = [
            {"params": {"name": "over"}, "content": over},
            {"params": {"name": "over"}, "content": iter([bytes(2**20)] * 71)},
            {"files": {"file": ("over", over)}},
        ]
        for body in bodies:
            answer = client.post("/api/v1/loras", **body)
            assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
            assert answer.json()["details"]["limit_bytes"] == 70 * 2**20
        assert [path.name for path in (tmp_path / "loras").iterdir()] == ["large.safetensors"]
        assert client.post("/api/v1/generate", content=b'{"prompt": "' + bytes(65 * 2**20)).status_code == 413
