"""A small request, its runs in a pipeline, and their images."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mflux_api.engine.sampling.pipeline import Event, ImageEvent, Pipeline, PipelineRequest
from mflux_api.images.inpainting import Fill, InpaintingInputs
from mflux_api.images.rgb import RGBImage

Pixels = npt.NDArray[np.uint8]
REQUEST = PipelineRequest(prompt="a red cat", seeds=(3,), width=64, height=48, steps=2)


def never() -> bool:
    """Never stop a run."""
    return False


def generate(pipeline: Pipeline, request: PipelineRequest) -> list[Pixels]:
    """Return every image of a pass."""
    return [event.pixels for event in pipeline.run(request, never) if isinstance(event, ImageEvent)]


def consume(run: Iterator[Event], seen: list[Event]) -> None:
    """Append events one by one, so that those before an exception stay."""
    seen.extend(run)


def distance(one: Pixels, other: Pixels) -> int:
    """Return the largest difference of two images in levels of 255."""
    return int(np.abs(one.astype(np.int16) - other).max())


def rgb_image(width: int, height: int, seed: int = 0) -> RGBImage:
    """Return an image with large shapes and some noise, another one for each seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(random.uniform(2, 9) * rows + random.uniform(2, 9) * columns + seed) for _ in range(3)]
    levels = 127.5 + 110 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return RGBImage(width, height, np.clip(levels, 0, 255).astype(np.uint8).tobytes())


def pixels_of(image: RGBImage) -> Pixels:
    """Return the image as an array (height, width, 3)."""
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def inpaint_right_half(source: RGBImage, fill: Fill = "original") -> InpaintingInputs:
    """Return an inpainting of an image's right half, with a hard edge and without a crop."""
    levels = np.zeros((source.height, source.width), np.uint8)
    levels[:, source.width // 2 :] = 255
    box = (0, 0, *source.size)
    return InpaintingInputs(mask=levels.tobytes(), overlay=source, blurred_mask=levels.tobytes(), box=box, fill=fill)


def keeps_left_half(pixels: Pixels, source: RGBImage) -> bool:
    """Whether the left half has the source's bytes and the right one is another image."""
    given, half = pixels_of(source), source.width // 2
    return bool((pixels[:, :half] == given[:, :half]).all()) and distance(pixels[:, half:], given[:, half:]) > 10
