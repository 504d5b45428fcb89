"""What the service is compared with by ``benchmarks/peers.py`` does the same work."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import stock_mflux
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest
from mflux_api.engine.weights.components import load_components
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.pipeline_runs import distance, generate


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["embedded", "in Klein's shapes"])
def test_stock_mflux_of_the_benchmark_has_the_pixels_of_the_service_without_the_fast_path(
    checkpoint: str, stock_folder: Path, device: Device
) -> None:
    folder = EMBEDDED if checkpoint == "embedded" else stock_folder
    request = PipelineRequest(prompt="a red house by a lake", seeds=(1,), width=64, height=96, steps=2)
    (ours,) = generate(Pipeline(load_components(folder), device), request)
    image = stock_mflux.load(folder).generate_image(
        seed=1, prompt=request.prompt, num_inference_steps=2, width=64, height=96
    )
    assert distance(ours, np.asarray(image.image.convert("RGB"))) == 0
    assert ours.std() > 20  # a flat image would prove nothing
