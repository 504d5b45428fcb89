"""FLUX.2-dev on a random checkpoint of its layout; tests/parity/dev_parity.py compares the same with diffusers."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from mflux_api.engine.dev.conversation import SYSTEM_MESSAGE
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.pipeline import ImageEvent, Pipeline, PipelineRequest, StageEvent, StepEvent
from mflux_api.engine.sampling.prompt_length import explain_cut
from mflux_api.engine.weights.components import CheckpointError, Components, load_components
from mflux_api.engine.weights.quantized_cache import load_quantized
from mflux_api.storage.footprint import Footprint, measure
from tests.support.dev_checkpoint import SHAPE, write_dev_checkpoint
from tests.support.loaded_components import held_bytes
from tests.support.pipeline_runs import distance, generate, inpaint_right_half, keeps_left_half, never, rgb_image

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]

REQUEST = PipelineRequest(prompt="a red cat", seeds=(7,), width=64, height=64, steps=2, guidance=4.0)


@pytest.fixture(scope="module")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dev_checkpoint(tmp_path_factory.mktemp("dev") / "model")


@pytest.fixture(scope="module")
def dev(dev_folder: Path, device: Device) -> Components:
    return load_components(dev_folder)


@pytest.fixture
def dev_pipeline(dev: Components, device: Device) -> Pipeline:
    return Pipeline(dev, device)


@pytest.fixture
def copy(dev_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dev_folder, tmp_path / "model"))


# --- the text encoder ---


@pytest.mark.parametrize("mask", [[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], ids=["none", "left", "right"])
def test_text_encoder_follows_mistrals_formulas(dev: Components, dev_folder: Path, mask: list[int]) -> None:
    """The formulas written out in numpy, token by token and head by head, with padding on each side."""
    ids = [5, 5, 70, 300, 12, 64]
    layers = dev.info.text_encoder_out_layers
    ours = dev.text_encoder.get_prompt_embeds(mx.array([ids]), mx.array([mask]), layers)
    states = _mistral(load_file(dev_folder / "text_encoder" / "model.safetensors"), ids, mask)
    expected = np.concatenate([states[layer] for layer in layers], axis=-1)
    assert ours.shape == (1, 6, 3 * SHAPE.text_width)
    np.testing.assert_allclose(np.array(ours.astype(mx.float32))[0], expected, rtol=2e-4, atol=2e-4)


def _mistral(tensors: dict[str, Any], ids: list[int], mask: list[int]) -> list[Array]:
    """Return every layer's output, the embedding first."""
    weights = {name.removeprefix("language_model.model."): value.astype(np.float64) for name, value in tensors.items()}
    hidden = weights["embed_tokens.weight"][ids]
    states = [hidden]
    for number in range(SHAPE.text_layers):
        weight = {
            name.removeprefix(f"layers.{number}.").removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"layers.{number}.")
        }
        hidden = hidden + _attention(_norm(hidden, weight["input_layernorm"]), weight, mask)
        x = _norm(hidden, weight["post_attention_layernorm"])
        gate = x @ weight["mlp.gate_proj"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (x @ weight["mlp.up_proj"].T)) @ weight["mlp.down_proj"].T
        states.append(hidden)
    return states


def _norm(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight)


def _attention(x: Array, weight: dict[str, Array], mask: list[int]) -> Array:
    head_dim, group = SHAPE.text_head_dim, SHAPE.text_heads // SHAPE.text_key_value_heads
    query, key, value = (x @ weight[f"self_attn.{name}_proj"].T for name in "qkv")
    heads = []
    for head in range(SHAPE.text_heads):
        shared = slice(head // group * head_dim, (head // group + 1) * head_dim)
        q = _rotate(query[:, head * head_dim : (head + 1) * head_dim])
        k = _rotate(key[:, shared])
        rows = []
        for token in range(len(mask)):
            seen = [other for other in range(token + 1) if mask[other]]
            scores = np.exp((k[seen] @ q[token]) / np.sqrt(head_dim))
            rows.append(scores / scores.sum() @ value[seen][:, shared] if seen else np.zeros(head_dim))
        heads.append(np.array(rows))
    return np.asarray(np.concatenate(heads, axis=-1) @ weight["self_attn.o_proj"].T)


def _rotate(x: Array) -> Array:
    half = x.shape[1] // 2
    angles = np.arange(len(x))[:, None] * 1e9 ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    )


def test_names_of_both_generations_of_transformers_are_read(copy: Path, dev: Components) -> None:
    file = copy / "text_encoder" / "model.safetensors"

    def rename(name: str) -> str:
        for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head")):
            if name.startswith(old):
                return new + name.removeprefix(old)
        return f"model.{name}"

    save_file({rename(name): value for name, value in load_file(file).items()}, file)
    ids, mask = mx.array([[1, 2, 3]]), mx.array([[1, 1, 1]])
    one, other = (each.text_encoder.get_prompt_embeds(ids, mask, (2, 5)) for each in (dev, load_components(copy)))
    assert mx.array_equal(one, other)


# --- the conversation ---


def test_prompt_is_a_conversation_with_the_system_message_and_is_padded_on_the_left(dev: Components) -> None:
    tokenizer = dev.tokenizer
    expected = f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]a  cat[/INST]"
    assert tokenizer.render("a [IMG] cat") == expected
    tokens = tokenizer.tokenize("a [IMG] cat")
    ids, mask = np.array(tokens.input_ids)[0], np.array(tokens.attention_mask)[0]
    assert ids.shape == mask.shape == (SHAPE.max_sequence_length,)
    padding = int((mask == 0).sum())
    assert padding > 0
    assert not mask[:padding].any()
    assert (ids[:padding] == tokenizer.tokenizer.pad_token_id).all()
    assert tokenizer.tokenizer.decode(ids[padding:]) == expected


def test_empty_and_endless_prompts_have_the_same_length(dev: Components) -> None:
    empty, endless = dev.tokenizer.tokenize(""), dev.tokenizer.tokenize("x" * 5000)
    assert empty.input_ids.shape == endless.input_ids.shape == (1, SHAPE.max_sequence_length)
    assert np.array(endless.attention_mask).all()
    assert int(endless.input_ids[0, 0]) == dev.tokenizer.tokenizer.bos_token_id


def test_endless_prompt_is_said_to_be_cut_after_the_words_that_are_read(dev: Components) -> None:
    prompt = " ".join(f"cat {number}" for number in range(300))
    said = explain_cut(dev.tokenizer, prompt, SHAPE.max_sequence_length)
    assert said is not None
    assert said.startswith("The prompt has ")
    words = said.partition("what comes after '…")[2].partition("'")[0]
    tokens = dev.tokenizer.tokenize(prompt)
    assert dev.tokenizer.tokenizer.decode(np.array(tokens.input_ids)[0]).endswith(words)
    assert len(words) > 10
    assert explain_cut(dev.tokenizer, "a [IMG] cat", SHAPE.max_sequence_length) is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[1].content[0].text }}", "does not write the system message"),
        ("{{ messages }}", "does not write the system message"),
        ("{{ raise_exception('no') }}", "cannot be used"),
        ("{% if %}", "cannot be used"),
        ("", "no template"),
    ],
)
def test_chat_template_that_loses_the_conversation(copy: Path, template: str, expected: str) -> None:
    (copy / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(CheckpointError, match=expected):
        load_components(copy)


# --- checkpoints ---


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(file.read_text("utf-8"))
    change(values)
    file.write_text(json.dumps(values), "utf-8")


def test_released_checkpoint_needs_no_keys_of_ours(copy: Path) -> None:
    """Without them the output layers are FLUX.2-dev's own, of which this small text encoder has too few."""
    _edit(copy / "model_index.json", lambda index: index.pop("text_encoder_out_layers"))
    with pytest.raises(CheckpointError, match="uses the output of text-encoder layer 30 of 7"):
        load_components(copy)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sliding_window", 4096, "sliding_window must be null"),
        ("num_key_value_heads", 3, "multiple of num_key_value_heads"),
        ("hidden_act", "gelu", "hidden_act must be"),
        ("hidden_size", 128, "joint_attention_dim is 192"),
        ("num_hidden_layers", 8, "model.layers.7.input_layernorm.weight of shape (64,) is missing"),
    ],
)
def test_text_encoder_that_is_not_computed_here(copy: Path, key: str, value: object, expected: str) -> None:
    _edit(copy / "text_encoder" / "config.json", lambda config: config["text_config"].update({key: value}))
    with pytest.raises(CheckpointError) as error:
        load_components(copy)
    assert expected in str(error.value)


def test_guidance_layers_must_be_there(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    name = "time_guidance_embed.guidance_embedder.linear_2.weight"
    save_file({key: value for key, value in load_file(file).items() if key != name}, file)
    with pytest.raises(CheckpointError, match=r"guidance_embedder\.linear_2\.weight .* is missing"):
        load_components(copy)


# --- images ---


def test_guidance_goes_into_the_transformer_a_thousandfold_and_makes_no_second_branch(dev_pipeline: Pipeline) -> None:
    predict, calls = dev_pipeline._transformer.plain, []

    def watched(*arguments: Any) -> mx.array:
        calls.append((arguments[0].shape[0], float(arguments[5])))
        return predict(*arguments)

    dev_pipeline._transformer.plain = watched
    references = (rgb_image(64, 48),)
    request = attrs.evolve(REQUEST, seeds=(1, 2), guidance=3.5, negative_prompt="night", references=references)
    generate(dev_pipeline, request)
    assert calls == [(2, 3500.0)] * 2
    assert len(dev_pipeline.prompt_cache) == 1


def test_guidance_changes_the_image(dev_pipeline: Pipeline) -> None:
    images = [generate(dev_pipeline, attrs.evolve(REQUEST, guidance=guidance))[0] for guidance in (0.0, 1.0, 4.0)]
    assert all(distance(one, other) > 1 for one, other in itertools.pairwise(images))


def test_guidance_is_embedded_as_the_timestep_is(dev: Components, dev_folder: Path) -> None:
    """Diffusers' formula: cosines first, then sines, of 4000 over 10000^(i / 128)."""
    file = dev_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: value.astype(np.float64) for name, value in load_file(file).items() if "guidance_embed" in name}

    def embed(kind: str, value: float) -> Array:
        angles = value * np.exp(-np.log(10000) * np.arange(128) / 128)
        first, second = (weights[f"time_guidance_embed.{kind}_embedder.linear_{number}.weight"] for number in (1, 2))
        x = first @ np.concatenate([np.cos(angles), np.sin(angles)])
        return np.asarray(second @ (x / (1 + np.exp(-x))))

    ours = dev.transformer.time_guidance_embed(mx.array([500.0]), mx.array([4000.0]))
    expected = embed("timestep", 500.0) + embed("guidance", 4000.0)
    # 4000 radians in float32 are known to 2e-4.
    np.testing.assert_allclose(np.array(ours.astype(mx.float32))[0], expected, atol=3e-3)


def test_start_image_and_batch_are_as_with_any_model(dev_pipeline: Pipeline) -> None:
    start = attrs.evolve(REQUEST, steps=4, start=rgb_image(64, 64), strength=0.5)
    events = list(dev_pipeline.run(start, never))
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2]
    one = generate(dev_pipeline, attrs.evolve(REQUEST, seeds=(8,)))[0]
    both = generate(dev_pipeline, attrs.evolve(REQUEST, seeds=(7, 8)))
    assert distance(one, both[1]) <= 1


# --- memory ---


def test_text_encoder_and_transformer_take_turns(dev_folder: Path, device: Device, dev_pipeline: Pipeline) -> None:
    pipeline = Pipeline(load_components(dev_folder, component_offload=True), device)
    request = attrs.evolve(REQUEST, steps=1, alternating_offload=True)

    def seen(asked: PipelineRequest) -> list[tuple[str, list[str]]]:
        kept = (StageEvent, StepEvent, ImageEvent)
        events = pipeline.run(asked, never)
        return [
            (type(each).__name__, sorted(pipeline.components.resident)) for each in events if isinstance(each, kept)
        ]

    encode = pipeline.components.text_encoder.get_prompt_embeds
    there: list[list[str]] = []

    def watched(*arguments: Any, **named: Any) -> mx.array:
        there.append(sorted(pipeline.components.resident))
        return mx.array(encode(*arguments, **named))

    pipeline.components.text_encoder.get_prompt_embeds = watched
    first = seen(request)
    assert there == [["text_encoder"]]
    assert first == [
        ("StageEvent", ["text_encoder"]),
        ("StageEvent", []),
        ("StepEvent", ["transformer"]),
        ("StageEvent", ["transformer"]),
        ("ImageEvent", ["transformer", "vae"]),
    ]
    # The prompt is known: nothing is read again.
    both = ["transformer", "vae"]
    assert {tuple(resident) for _, resident in seen(attrs.evolve(request, seeds=(9,)))} == {tuple(both)}
    other = seen(attrs.evolve(request, prompt="a dog"))
    assert [resident for _, resident in other] == [both, ["vae"], both, both, both]
    assert distance(generate(pipeline, request)[0], generate(dev_pipeline, attrs.evolve(REQUEST, steps=1))[0]) == 0


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_expected_bytes_are_the_bytes_that_are_held(
    dev_folder: Path, tmp_path: Path, device: Device, bits: int | None
) -> None:
    float_bytes = 2 if device.is_gpu else 4
    expected = measure(dev_folder, float_bytes=float_bytes, bits=bits)
    assert expected is not None
    assert expected.alternating_offload is not None
    assert expected.component_offload < expected.alternating_offload < expected.whole
    components = load_components(dev_folder) if bits is None else load_quantized(dev_folder, bits, tmp_path / "q")
    found = held_bytes(components)
    assert (expected.whole, expected.component_offload) == (found.whole, found.component_offload)
    if bits is not None:
        assert measure(tmp_path / "q", float_bytes=float_bytes) == expected
        (first,) = generate(Pipeline(components, device), REQUEST)
        (again,) = generate(Pipeline(load_quantized(dev_folder, bits, tmp_path / "q"), device), REQUEST)
        assert np.array_equal(first, again)


def test_klein_has_no_alternating_offload(tiny_folder: Path) -> None:
    footprint = measure(tiny_folder, float_bytes=4)
    assert isinstance(footprint, Footprint)
    assert footprint.alternating_offload is None


def test_inpainting_keeps_the_protected_half(dev_pipeline: Pipeline) -> None:
    source = rgb_image(64, 64, 5)
    request = attrs.evolve(REQUEST, references=(source,), start=source, inpainting=inpaint_right_half(source))
    (image,) = generate(dev_pipeline, request)
    assert keeps_left_half(image, source)
