"""The pipeline beside stock mflux, and what stock mflux cannot do: batches, events, stopping, a bounded cache."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from mflux.models.flux2.variants import Flux2Klein

from mflux_api.engine.device import Device
from mflux_api.engine.sampling import decoding
from mflux_api.engine.sampling.decoding import NotFiniteError, decode_mode, decode_packed, to_pixels
from mflux_api.engine.sampling.pipeline import (
    DoneEvent,
    Event,
    ImageEvent,
    Pipeline,
    PipelineRequest,
    StageEvent,
    StepEvent,
    Stopped,
)
from mflux_api.engine.sampling.prompt_cache import PromptCache
from mflux_api.engine.weights.components import Components, load_components
from tests.support.pipeline_runs import REQUEST, consume, distance, generate, never
from tests.support.stock_mflux import generate_stock, klein_config


@pytest.fixture(scope="module")
def stock(stock_folder: Path, device: Device) -> Any:
    return Flux2Klein(model_path=str(stock_folder), model_config=klein_config())


@pytest.fixture(scope="module")
def same_as_stock(stock_folder: Path, device: Device) -> Pipeline:
    return Pipeline(load_components(stock_folder), device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "seed", "width", "height", "steps"),
    [
        ("a red cat at night", 0, 64, 64, 4),
        ("ein Haus, 猫, 🚀 and a very long tail of words " * 40, 2**53 - 5, 96, 64, 3),
        pytest.param("sea", 2**64 - 1, 64, 80, 1, marks=pytest.mark.thorough),
    ],
)
def test_bit_identical_to_stock_at_guidance_1(
    stock: Any, same_as_stock: Pipeline, device: Device, prompt: str, seed: int, width: int, height: int, steps: int
) -> None:
    request = PipelineRequest(prompt=prompt, seeds=(seed,), width=width, height=height, steps=steps)
    (ours,) = generate(same_as_stock, request)
    assert distance(ours, generate_stock(stock, request, device)) == 0
    assert ours.std() > 20  # a flat image would prove nothing


@pytest.mark.slow
def test_within_one_level_of_stock_at_guidance_4(stock: Any, same_as_stock: Pipeline, device: Device) -> None:
    request = PipelineRequest(prompt="a blue tree", seeds=(11,), width=64, height=64, steps=4, guidance=4.0)
    (ours,) = generate(same_as_stock, request)
    assert distance(ours, generate_stock(stock, request, device)) <= 1
    (unguided,) = generate(same_as_stock, attrs.evolve(request, guidance=1.0))
    assert distance(ours, unguided) > 10


def test_image_that_overflows_only_in_the_decoder_is_an_error_and_not_a_black_image(
    tiny_folder: Path, device: Device
) -> None:
    components = load_components(tiny_folder)
    components.vae.post_quant_conv.weight[0] = float("nan")
    with pytest.raises(NotFiniteError):
        generate(Pipeline(components, device), REQUEST)


@pytest.mark.parametrize("mode", ["legacy", "full_precision", "low_memory"])
def test_decode_is_mfluxs_own_in_every_mode(tiny: Components, mode: Any) -> None:
    packed = mx.random.normal((1, 128, 10, 3), key=mx.random.key(5))
    tiny.vae.decode_mode = mode
    expected = to_pixels(tiny.vae.decode_packed_latents(packed))
    assert distance(to_pixels(decode_packed(tiny.vae, packed, mode, lambda: None)), expected) == 0


def test_same_request_gives_the_same_bytes(tiny: Components, device: Device) -> None:
    first, again = (generate(Pipeline(tiny, device), REQUEST) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_batch_of_seeds_is_the_single_images(pipeline: Pipeline, guidance: float) -> None:
    seeds = (3, 4, 2**40)
    request = attrs.evolve(REQUEST, guidance=guidance, negative_prompt="dog")
    batch = generate(pipeline, attrs.evolve(request, seeds=seeds))
    singles = [generate(pipeline, attrs.evolve(request, seeds=(seed,)))[0] for seed in seeds]
    assert [distance(one, other) <= 1 for one, other in zip(batch, singles, strict=True)] == [True] * 3
    assert distance(singles[0], singles[1]) > 10


def test_pixels_are_contiguous_rgb_rows(pipeline: Pipeline) -> None:
    (pixels,) = generate(pipeline, REQUEST)
    assert (pixels.shape, str(pixels.dtype), pixels.flags.c_contiguous) == ((48, 64, 3), "uint8", True)


def test_prompts_and_negative_prompts_matter(pipeline: Pipeline) -> None:
    guided = attrs.evolve(REQUEST, guidance=3.0)
    requests = [
        REQUEST,
        attrs.evolve(REQUEST, prompt="a blue dog"),
        guided,
        attrs.evolve(guided, negative_prompt="night"),
        attrs.evolve(guided, negative_prompt=""),
    ]
    images = {generate(pipeline, request)[0].tobytes() for request in requests}
    assert len(images) == len(requests)
    (default,) = generate(pipeline, guided)
    assert default.tobytes() == generate(pipeline, attrs.evolve(guided, negative_prompt=" "))[0].tobytes()


def test_both_branches_of_guidance_share_one_call(tiny: Components, device: Device) -> None:
    pipeline = Pipeline(tiny, device)
    rows: list[int] = []
    predict = pipeline._transformer.plain

    def watched(latents: mx.array, *rest: mx.array) -> mx.array:
        rows.append(latents.shape[0])
        return predict(latents, *rest)

    pipeline._transformer.plain = watched
    generate(pipeline, attrs.evolve(REQUEST, seeds=(1, 2, 3), guidance=4.0, negative_prompt="dog"))
    generate(pipeline, attrs.evolve(REQUEST, seeds=(1, 2, 3)))
    assert rows == [6, 6, 3, 3]


def test_events_in_order(pipeline: Pipeline) -> None:
    events: list[Event] = list(pipeline.run(attrs.evolve(REQUEST, seeds=(8, 9)), never))
    assert events[:5] == [
        StageEvent("encoding"),
        StageEvent("denoising"),
        StepEvent(1, 2, images=2),
        StepEvent(2, 2, images=2),
        StageEvent("decoding"),
    ]
    images = [(event.index, event.seed) for event in events[5:-1] if isinstance(event, ImageEvent)]
    assert images == [(0, 8), (1, 9)]
    assert isinstance(events[-1], DoneEvent)
    assert min(attrs.astuple(events[-1])) > 0


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_stopping_after_a_step_runs_no_further_step(tiny: Components, device: Device, after: int) -> None:
    pipeline = Pipeline(tiny, device)
    calls = 0
    predict = pipeline._transformer.plain

    def counted(*args: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        return predict(*args)

    pipeline._transformer.plain = counted
    seen: list[Event] = []
    run = pipeline.run(attrs.evolve(REQUEST, steps=4), lambda: after == 0 or StepEvent(after, 4) in seen)
    with pytest.raises(Stopped):
        consume(run, seen)
    assert calls == after
    assert StageEvent("decoding") not in seen


def _stop_when_asked(times: int) -> Callable[[], bool]:
    asked = iter(range(times))
    return lambda: next(asked, None) is None


def test_stopping_at_every_question_stops_there(pipeline: Pipeline) -> None:
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    events = list(pipeline.run(REQUEST, count))
    # Components and steps ask 8 times; the decoder asks between its blocks.
    assert asked == 8 + 14
    for times in range(0, asked, 5):
        seen: list[Event] = []
        with pytest.raises(Stopped):
            consume(pipeline.run(REQUEST, _stop_when_asked(times)), seen)
        assert not any(isinstance(event, ImageEvent | DoneEvent) for event in seen)
    assert len(list(pipeline.run(REQUEST, never))) == len(events)


def test_a_step_is_computed_when_it_is_reported(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[int, ...]] = []
    real = mx.eval

    def watched(*arrays: Any) -> None:
        evaluated.extend(tuple(array.shape) for array in arrays)
        real(*arrays)

    monkeypatch.setattr(mx, "eval", watched)
    counts = [evaluated.count((1, 12, 128)) for event in pipeline.run(REQUEST, never) if isinstance(event, StepEvent)]
    assert counts == [1, 2]


def test_prompt_embeddings_are_computed_once(tiny: Components, device: Device) -> None:
    pipeline = Pipeline(tiny, device)
    generate(pipeline, attrs.evolve(REQUEST, guidance=2.0))
    assert len(pipeline.prompt_cache) == 2
    held = pipeline.prompt_cache.size_bytes
    assert held == 2 * 48 * 192 * 4
    generate(pipeline, attrs.evolve(REQUEST, seeds=(5, 6), guidance=2.0))
    assert pipeline.prompt_cache.size_bytes == held


def test_prompt_cache_is_bounded_by_bytes_and_drops_the_least_recently_used() -> None:
    cache = PromptCache(limit_bytes=100)
    for text in "ab":
        cache.put(text, mx.zeros((10,)))
    assert cache.get("a") is not None
    cache.put("c", mx.zeros((10,)))
    assert [cache.get(text) is not None for text in "abc"] == [True, False, True]
    cache.put("large", mx.zeros((26,)))
    assert cache.get("large") is None
    cache.put("a", mx.zeros((15,)))
    assert (len(cache), cache.size_bytes) == (2, 100)
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": -1},
        {"seeds": ()},
        {"seeds": (-1,)},
        {"seeds": (2**64,)},
        {"width": 0},
        {"width": 65},
        {"height": 8},
    ],
)
def test_requests_that_cannot_be_computed(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        attrs.evolve(REQUEST, **change)


def test_prompts_do_not_show_in_a_requests_repr() -> None:
    assert "secret" not in repr(attrs.evolve(REQUEST, prompt="secret", negative_prompt="secret"))


@pytest.mark.parametrize(
    ("kind", "fast_path", "side", "low_ram", "mode"),
    [
        ("cpu", True, 64, False, "low_memory"),
        ("cpu", True, 1024, True, "low_memory"),
        ("cuda", False, 512, False, "legacy"),
        ("cuda", False, 528, False, "full_precision"),
        ("cuda", False, 512, True, "low_memory"),
        ("cuda", True, 2048, False, "kernels"),
        ("cuda", True, 1024, True, "kernels"),
        ("cuda", True, 1040, True, "low_memory"),
        ("metal", True, 512, False, "full_precision"),
        ("metal", True, 528, False, "low_memory"),
        ("metal", True, 512, True, "low_memory"),
    ],
)
def test_decode_mode_is_a_table(kind: Any, fast_path: bool, side: int, low_ram: bool, mode: str) -> None:
    assert decode_mode(Device(kind=kind, name="any", fast_path=fast_path), side, side, low_ram) == mode


@pytest.mark.parametrize(("side", "as_before"), [(512, "modules"), (528, "strips")])
def test_vae_that_the_kernels_do_not_take_is_decoded_as_before(
    tiny: Components, monkeypatch: pytest.MonkeyPatch, side: int, as_before: str
) -> None:
    device = Device(kind="cuda", name="any", fast_path=True)
    mode = decode_mode(device, side, side, low_ram=False)
    assert mode == "kernels"
    ways: list[str] = []
    for way in ("modules", "strips"):
        monkeypatch.setattr(decoding, f"_decode_{way}", lambda *_, way=way: ways.append(way))
    decode_packed(tiny.vae, mx.zeros((1, 128, side // 16, side // 16)), mode, lambda: None)
    assert ways == [as_before]


def test_generating_reaches_for_no_network(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the pipeline opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(generate(pipeline, REQUEST)) == 1
