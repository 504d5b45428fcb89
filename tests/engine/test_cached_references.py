"""FLUX.2 Klein 9B KV: references are seen at the first step only, beside stock mflux."""

import json
import os
import shutil
from pathlib import Path

import attrs
import mlx.core as mx
import pytest
from mflux.models.flux2.variants import Flux2KleinEdit

from mflux_api.engine.device import Device
from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest
from mflux_api.engine.weights.components import load_components
from tests.support.pipeline_runs import distance, generate, inpaint_right_half, keeps_left_half, rgb_image
from tests.support.stock_mflux import generate_stock, klein_config, save_images

pytestmark = pytest.mark.slow

REQUEST = PipelineRequest(
    prompt="make it night",
    seeds=(3,),
    width=64,
    height=64,
    steps=3,
    references=(rgb_image(48, 32), rgb_image(64, 64, 1)),
)


def caching(folder: Path, target: Path) -> Path:
    """Copy the checkpoint as one of diffusers' KV pipeline; the files are shared."""
    shutil.copytree(folder, target, copy_function=os.link)
    index = target / "model_index.json"
    values = json.loads(index.read_text("utf-8"))
    index.unlink()
    index.write_text(json.dumps(values | {"_class_name": "Flux2KleinKVPipeline"}), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def tiny_kv(tiny_folder: Path, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load_components(caching(tiny_folder, tmp_path_factory.mktemp("kv") / "tiny")), device)


def test_same_pixels_as_stock_edit_with_its_cache(stock_folder: Path, device: Device, tmp_path: Path) -> None:
    folder = caching(stock_folder, tmp_path / "model")
    pipeline = Pipeline(load_components(folder), device)
    stock = Flux2KleinEdit(model_path=str(folder), model_config=klein_config(kv_cache=True))
    files = save_images(tmp_path, REQUEST.references)
    (ours,) = generate(pipeline, REQUEST)
    assert distance(ours, generate_stock(stock, REQUEST, device, files)) == 0
    guided = attrs.evolve(REQUEST, guidance=4.0, steps=2)
    assert distance(generate(pipeline, guided)[0], generate_stock(stock, guided, device, files)) <= 1


def test_references_are_in_the_first_step_only(tiny_kv: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    predict = tiny_kv._transformer.plain

    def watched(rows: mx.array, *rest: mx.array) -> mx.array:
        tokens.append(rows.shape[1])
        return predict(rows, *rest)

    monkeypatch.setattr(tiny_kv._transformer, "plain", watched)
    generate(tiny_kv, REQUEST)
    assert tokens == [16 + 6 + 16, 16, 16]


def test_cached_references_work_on_and_batches_are_the_single_images(tiny_kv: Pipeline, pipeline: Pipeline) -> None:
    (cached,) = generate(tiny_kv, REQUEST)
    assert distance(cached, generate(tiny_kv, attrs.evolve(REQUEST, references=()))[0]) > 1
    assert distance(cached, generate(pipeline, REQUEST)[0]) > 0
    guided = attrs.evolve(REQUEST, guidance=3.0, strength=0.7, start=rgb_image(64, 64, 5))
    batch = generate(tiny_kv, attrs.evolve(guided, seeds=(3, 4)))
    singles = [generate(tiny_kv, attrs.evolve(guided, seeds=(seed,)))[0] for seed in (3, 4)]
    assert [distance(one, other) <= 1 for one, other in zip(batch, singles, strict=True)] == [True, True]


def test_without_references_the_model_generates_as_the_others(tiny_kv: Pipeline, pipeline: Pipeline) -> None:
    request = attrs.evolve(REQUEST, references=())
    assert generate(tiny_kv, request)[0].tobytes() == generate(pipeline, request)[0].tobytes()


def test_inpainting_keeps_the_protected_half_with_cached_references(tiny_kv: Pipeline) -> None:
    source = rgb_image(64, 64, 5)
    request = attrs.evolve(
        REQUEST,
        seeds=(3, 4),
        references=(source, *REQUEST.references),
        start=source,
        strength=0.7,
        inpainting=inpaint_right_half(source),
    )
    assert all(keeps_left_half(image, source) for image in generate(tiny_kv, request))
