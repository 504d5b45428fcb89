"""JSON of A1111's ``progress``, ``interrupt`` and ``skip``; the names are theirs, and no number is ever null."""

import attrs


@attrs.frozen(kw_only=True)
class ProgressState:
    """``state`` of ``GET /sdapi/v1/progress``."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    """The route of the call; empty when there is none."""
    job_count: int = 0
    """How many images the call makes; 0 when there is none."""
    job_timestamp: str = "0"
    job_no: int = 0
    """Images before the current one."""
    sampling_step: int = 0
    sampling_steps: int = 0


@attrs.frozen(kw_only=True)
class ProgressAnswer:
    """``GET /sdapi/v1/progress``: of this client's newest call that waits, and of no other client's."""

    progress: float
    """0.0 to 1.0; exactly 0 when no call waits."""
    eta_relative: float
    """Seconds; 0 when it is not known."""
    state: ProgressState
    current_image: str | None
    """A small JPEG in base64, unless ``skip_current_image=true``; the first follows the first question for it."""
    textinfo: str | None


@attrs.frozen(kw_only=True)
class TaskRequest:
    """``POST /internal/progress``."""

    id_task: str
    """What ``force_task_id`` of a call said."""
    id_live_preview: int = -1
    """The number of the preview that the client has."""
    live_preview: bool = True


@attrs.frozen(kw_only=True)
class TaskAnswer:
    """``POST /internal/progress``."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None
    eta: float | None
    live_preview: str | None
    """A data URL, where there is a preview that the client does not have."""
    id_live_preview: int
    textinfo: str


@attrs.frozen(kw_only=True)
class InterruptAnswer:
    """``POST /sdapi/v1/interrupt`` and ``skip``."""

    interrupted: bool
    """Whether a call of this client was ended; its own answer has the images so far."""
    warnings: tuple[str, ...] = ()
