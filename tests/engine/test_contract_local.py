"""The contract with a real child, MLX and the embedded checkpoint."""

from pathlib import Path

import attrs
import pytest

from mflux_api.engine.demo.layout import CheckpointShape
from mflux_api.engine.interface import Engine, EngineStarter
from mflux_api.engine.local import LocalEngine
from mflux_api.engine.protocol import Loaded, LoadModel, RunFailed, StepDone
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.adapter_files import peft
from tests.support.checkpoint_shapes import TINY
from tests.support.engine_contract import RUN, EngineContract, load, rgb_images, run

pytestmark = pytest.mark.slow


class TestLocalEngine(EngineContract):
    @pytest.fixture
    def start(self) -> EngineStarter:
        return LocalEngine.start

    @pytest.fixture
    def good(self) -> LoadModel:
        return LoadModel(model="demo", path=str(EMBEDDED))

    async def test_loras_belong_to_one_run(self, engine: Engine, tiny_folder: Path, tmp_path: Path) -> None:
        assert isinstance(await load(engine, LoadModel(model="demo", path=str(tiny_folder))), Loaded)
        before = rgb_images(await run(engine, RUN))
        lora = str(peft(tmp_path / "ink.safetensors", TINY))
        adapted = rgb_images(await run(engine, attrs.evolve(RUN, lora_paths=(lora,), lora_scales=(1.0,))))
        halved = rgb_images(await run(engine, attrs.evolve(RUN, lora_paths=(lora,), lora_scales=(0.5,))))
        assert len({*before, *adapted, *halved}) == 3
        assert rgb_images(await run(engine, RUN)) == before

    async def test_resident_models_have_adapters_of_their_own(
        self, engine: Engine, good: LoadModel, tiny_folder: Path, tmp_path: Path
    ) -> None:
        loads = {"demo": good, "small": LoadModel(model="small", path=str(tiny_folder))}
        shapes = {"demo": CheckpointShape(), "small": TINY}
        runs = {}
        for model, shape in shapes.items():
            assert isinstance(await load(engine, loads[model]), Loaded)
            lora = str(peft(tmp_path / f"{model}.safetensors", shape))
            plain = attrs.evolve(RUN, model=model)
            runs[model, "plain"] = plain
            runs[model, "adapted"] = attrs.evolve(plain, lora_paths=(lora,), lora_scales=(1.0,))
        first = {key: rgb_images(await run(engine, command)) for key, command in runs.items()}
        assert len({image for each in first.values() for image in each}) == len(runs)
        # The other model's runs in between, and the other order, change nothing.
        for key in sorted(runs, key=lambda key: key[1], reverse=True):
            assert rgb_images(await run(engine, runs[key])) == first[key]

    async def test_lora_that_does_not_fit_is_the_requests_fault(
        self, engine: Engine, good: LoadModel, tmp_path: Path
    ) -> None:
        await load(engine, good)
        before = rgb_images(await run(engine, RUN))
        lora = str(peft(tmp_path / "ink.safetensors", attrs.evolve(TINY, heads=3)))
        for path, words in ((lora, "another"), (str(tmp_path / "none.safetensors"), "gone")):
            failed = (await run(engine, attrs.evolve(RUN, lora_paths=(path,), lora_scales=(1.0,))))[-1].event
            assert isinstance(failed, RunFailed)
            assert (failed.code, failed.details["field"]) == ("INVALID_PARAMETER", "lora_files")
            assert failed.details.keys() == {"field", "value", "limit"}
            assert words in failed.message
            assert str(tmp_path) not in failed.message
        assert rgb_images(await run(engine, RUN)) == before

    async def test_images_share_a_pass_and_are_their_single_runs(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        frames = await run(engine, attrs.evolve(RUN, seeds=(7, 8, 9, 10)))
        steps = [frame.event for frame in frames if isinstance(frame.event, StepDone)]
        assert [(event.image, event.images, event.step) for event in steps] == [(0, 4, 1), (0, 4, 2)]
        for seed, pixels in zip((7, 8, 9, 10), rgb_images(frames), strict=True):
            (single,) = rgb_images(await run(engine, attrs.evolve(RUN, seeds=(seed,))))
            assert max(abs(one - other) for one, other in zip(pixels, single, strict=True)) <= 1
        careful = await run(engine, attrs.evolve(RUN, seeds=(7, 8), low_ram=True))
        assert [frame.event.images for frame in careful if isinstance(frame.event, StepDone)] == [1] * 4
