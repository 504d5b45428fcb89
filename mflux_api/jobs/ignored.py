"""What a request asks for and its model does not do, as warnings: fields without effect, guidance that was changed."""

from collections.abc import Mapping, Sequence

from mflux_api.catalog import Model
from mflux_api.jobs import demo_world, prompt_syntax
from mflux_api.jobs.request import NOT_OF_UPSCALERS, ONLY_OF_UPSCALERS, GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest

NO_NAMES: Mapping[str, str] = {}


def of_request(
    asked: GenerateRequest, model: Model, runs: ResolvedRequest, names: Mapping[str, str] = NO_NAMES
) -> tuple[str, ...]:
    """Return a sentence for each thing that is asked for and not done.

    Args:
        asked: the request.
        model: the model that it runs on.
        runs: what is run.
        names: what the client calls a field, where it has a name of its own.
    """
    if model.upscales:
        without = [name for name in ("prompt", *NOT_OF_UPSCALERS) if asks(getattr(asked, name))]
        others = of_other_kind([names.get(name, name) for name in without], upscales=True)
        return (*others, *_of_compression(asked))
    without = [name for name in ONLY_OF_UPSCALERS if asks(getattr(asked, name))]
    return (
        *of_other_kind([names.get(name, name) for name in without], upscales=False),
        *_of_guidance(asked, model, runs, names.get("guidance", "guidance")),
        *_of_negative_prompt(asked, model, runs),
        *_of_prompts(asked, model, runs),
        *_of_words(asked, model),
        *_of_strength(asked, names.get("image_strength", "image_strength")),
        *_of_partial_images(asked, runs),
        *_of_compression(asked),
    )


def of_other_kind(names: Sequence[str], *, upscales: bool) -> tuple[str, ...]:
    """Return what is said of fields that belong to another kind of model.

    Args:
        names: those that ask for something.
        upscales: whether the model is an upscaler.
    """
    if not names:
        return ()
    listed = ", ".join(f"'{name}'" for name in names)
    kind = "the model is an upscaler" if upscales else "the model is not an upscaler"
    return (f"{listed} {'has' if len(names) == 1 else 'have'} no effect: {kind}",)


def asked_twice(unused: str, used: str) -> str:
    """Return what is said of a field beside another one of the same meaning."""
    return f"'{unused}' has no effect beside '{used}'"


def asks(value: object) -> bool:
    """Whether a field asks for something: a blank text and a softness of 0 do not."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != 0.0


def _of_guidance(asked: GenerateRequest, model: Model, runs: ResolvedRequest, name: str) -> tuple[str, ...]:
    if asked.guidance is None or asked.guidance == runs.guidance:
        return ()
    if not model.supports_guidance:
        return (f"'{name}' {asked.guidance:g} was set to 1: '{model.alias}' is distilled, and always runs at 1",)
    return (f"'{name}' {asked.guidance:g} was raised to {runs.guidance:g}, the least that has a meaning",)


def _of_negative_prompt(asked: GenerateRequest, model: Model, runs: ResolvedRequest) -> tuple[str, ...]:
    if not asks(asked.negative_prompt) or has_negative_branch(model, runs):
        return ()
    if model.takes_negative_prompts:
        return ("'negative_prompt' has no effect at a guidance of 1; ask for more",)
    why = "is distilled, and runs without guidance" if not model.supports_guidance else "takes none"
    return (f"'negative_prompt' has no effect: '{model.alias}' {why}",)


def _of_prompts(asked: GenerateRequest, model: Model, runs: ResolvedRequest) -> tuple[str, ...]:
    negative = asked.negative_prompt if has_negative_branch(model, runs) else None
    return (*prompt_syntax.explain("prompt", asked.prompt), *prompt_syntax.explain("negative_prompt", negative or ""))


def _of_words(asked: GenerateRequest, model: Model) -> tuple[str, ...]:
    # A LoRA may have taught the model a word.
    return () if asked.lora_files else demo_world.explain(model, asked.prompt)


def _of_strength(asked: GenerateRequest, name: str) -> tuple[str, ...]:
    if asked.image_strength is None or asked.init_images:
        return ()
    return (f"'{name}' has no effect without init images",)


def _of_partial_images(asked: GenerateRequest, runs: ResolvedRequest) -> tuple[str, ...]:
    if asked.partial_images <= runs.partial_images:
        return ()
    if asked.low_ram:
        return ("'partial_images' has no effect with 'low_ram': one part of the model is in memory at a time",)
    steps = "1 step" if runs.steps_run == 1 else f"{runs.steps_run} steps"
    return (
        f"'partial_images' {asked.partial_images} was changed to {runs.partial_images}: "
        f"each shows another step than the last, and there are {steps} in all",
    )


def _of_compression(asked: GenerateRequest) -> tuple[str, ...]:
    if asked.output_compression is None or asked.output_format not in (None, "png"):
        return ()
    return ("'output_compression' has no effect: PNG files lose nothing; ask for an 'output_format' of jpeg or webp",)


def has_negative_branch(model: Model, runs: ResolvedRequest) -> bool:
    """Whether a negative prompt has an effect."""
    return runs.guidance > 1.0 and model.takes_negative_prompts
