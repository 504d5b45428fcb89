"""What a job runs: the request with every default filled in."""

import secrets

import attrs

from mflux_api.catalog import Model
from mflux_api.jobs.inpainting import Inpainting
from mflux_api.jobs.request import DEFAULT_SIDE, DEFAULT_STRENGTH, GenerateRequest, ImageFormat
from mflux_api.jobs.schedule import partial_steps, steps_to_run
from mflux_api.jobs.webhook import Webhook


@attrs.frozen(kw_only=True)
class Upscaling:
    """An upscaler's parameters besides its image."""

    resolution: int
    """The result's shorter side in pixels."""
    softness: float = 0.0
    """How much detail is taken away first, 0 to 1."""


@attrs.frozen(kw_only=True)
class ResolvedRequest:
    """What a job runs, as it stands: nothing downstream fills in a default.

    Made by :func:`resolve` or :func:`mflux_api.jobs.upscaling.resolve_upscaling`.
    """

    prompt: str = attrs.field(repr=False)
    model: str
    """An alias of the catalog."""
    seed: int
    """Seed of the first image; image i has seed + i."""
    width: int
    """Width of what is generated in pixels."""
    height: int
    steps: int
    """Steps of the whole schedule; :attr:`steps_run` of them are computed."""
    guidance: float
    num_images: int = 1
    negative_prompt: str | None = attrs.field(default=None, repr=False)
    lora_files: tuple[str, ...] = ()
    """Names of files below ``lora.dirs``."""
    lora_scales: tuple[float, ...] = ()
    """One scale for each file."""
    low_ram: bool = False
    init_images: tuple[str, ...] = attrs.field(default=(), repr=False)
    """Base64 or data URLs; empty texts in a job that waits, which the store has; a finished job has none any more."""
    image_strength: float | None = None
    """How much of the first init image to transform; ``None`` without init images."""
    inpainting: Inpainting | None = None
    """Set where a part of the first init image is kept; ``width`` and ``height`` are then what is generated at."""
    mask: str = attrs.field(default="", repr=False)
    """As ``init_images`` are; empty without one."""
    upscaling: Upscaling | None = None
    """Set for an upscaler, whose ``width`` and ``height`` are the result's."""
    output_format: ImageFormat | None = None
    """Of images in answers and events; ``None``: as they are on disk."""
    output_compression: int | None = None
    """The quality of a lossy one, 0 to 100."""
    partial_images: int = 0
    """How often each image is decoded on its way, for followers."""
    priority: int = 0
    """Among the waiting jobs of its caller the highest is first."""
    lane: int = 0
    """Where it is not 0, its priority among the jobs of all callers, too."""
    webhook: Webhook | None = None
    """Where the job's end is sent."""
    warnings: tuple[str, ...] = ()
    """Sentences about what was asked for and is not done; of a finished job also those of its runs."""

    def without_inputs(self) -> "ResolvedRequest":
        """Return the request as a waiting job has it: with as many inputs, which are in the store."""
        return self.with_inputs(("",) * len(self.inputs))

    def with_inputs(self, inputs: tuple[str, ...]) -> "ResolvedRequest":
        """Return the request with these :attr:`inputs`; without any it is a finished job's."""
        if not self.init_images and not inputs:
            return self
        if self.inpainting is not None and self.inpainting.masked and inputs:
            *images, mask = inputs
            return attrs.evolve(self, init_images=tuple(images), mask=mask)
        return attrs.evolve(self, init_images=inputs, mask="")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return every image that the client gave: the init images and, last, the mask if there is one."""
        masked = self.inpainting is not None and self.inpainting.masked and self.init_images
        return (*self.init_images, self.mask) if masked else self.init_images

    def with_warnings(self, warnings: tuple[str, ...]) -> "ResolvedRequest":
        """Return the request with these warnings."""
        return attrs.evolve(self, warnings=warnings)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is generated, in pixels; the result's, unless it is put back into an image."""
        return self.width, self.height

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of the result in pixels."""
        return self.size if self.inpainting is None else self.inpainting.result

    @property
    def strength(self) -> float:
        """How much of what the run starts from is transformed: 1 is pure noise."""
        return 1.0 if self.image_strength is None else self.image_strength

    @property
    def steps_run(self) -> int:
        """How many steps are computed: a strength below 1 leaves out the first ones."""
        return steps_to_run(self.steps, self.strength)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every image."""
        return tuple(self.seed + index for index in range(self.num_images))


def resolve(
    request: GenerateRequest,
    model: Model,
    *,
    default_steps: int,
    default_size: tuple[int, int] | None = None,
    lora_names: tuple[str, ...] = (),
    inpainting: Inpainting | None = None,
) -> ResolvedRequest:
    """Fill in what a request for images leaves to the service.

    Args:
        request: a checked request.
        model: the catalog entry that it names, which is not an upscaler.
        default_steps: ``generation.default_steps``.
        default_size: of images whose size is not named; by default 512 by 512.
        lora_names: the names under which its ``lora_files`` are found again.
        inpainting: what :func:`~mflux_api.jobs.inpainting.resolve_inpainting` made of it.
    """
    width, height = default_size or (DEFAULT_SIDE, DEFAULT_SIDE)
    # What an image is extended by has nothing yet that could be kept.
    usual = 1.0 if request.extend else DEFAULT_STRENGTH
    strength = usual if request.image_strength is None else request.image_strength
    missing = len(request.lora_files) - len(request.lora_scales)
    guidance = request.guidance if request.guidance is not None else model.default_guidance
    if model.family == "flux2-klein":
        # At 1 and below there is no second branch: it is all the same image.
        guidance = max(guidance, 1.0)
    resolved = ResolvedRequest(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model=model.alias,
        seed=choose_seed(request),
        width=width if request.width is None else request.width,
        height=height if request.height is None else request.height,
        steps=request.steps if request.steps is not None else (model.default_steps or default_steps),
        guidance=guidance if model.supports_guidance else 1.0,
        num_images=request.num_images,
        lora_files=lora_names,
        lora_scales=(*request.lora_scales, *[1.0] * missing),
        low_ram=request.low_ram,
        init_images=request.init_images,
        image_strength=strength if request.init_images else None,
        inpainting=inpainting,
        mask=(request.mask or "") if inpainting is not None else "",
        output_format=request.output_format,
        output_compression=request.output_compression,
    )
    # With little memory the VAE has no place beside the transformer.
    partial_images = 0 if request.low_ram else len(partial_steps(resolved.steps_run, request.partial_images))
    return attrs.evolve(resolved, partial_images=partial_images)


def choose_seed(request: GenerateRequest) -> int:
    """Return the request's seed, or a random one below 2**32."""
    return secrets.randbelow(2**32) if request.seed in (None, -1) else request.seed
