"""What the engine may send about one run: checked on arrival, so that a broken engine costs only itself."""

from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied, Received
from mflux_api.jobs.resolve import ResolvedRequest


class RunFrames:
    """The frames of one run so far."""

    def __init__(self, request: ResolvedRequest) -> None:
        self._images = request.num_images
        self._partial_images = request.partial_images
        self._loras = len(request.lora_files)
        self._most = p.most_events(request.num_images, request.steps)
        self._seen = 0
        self._sent: set[int] = set()

    def check(self, received: Received) -> None:
        """Take one more frame of the run.

        Raises:
            EngineDied: a working engine does not send such a frame, or not that many.
        """
        sizes = [len(blob) for blob in received.blobs]
        match received.event:
            case (
                p.StageChanged()
                | p.StepDone()
                | p.RunWarning()
                | p.PreviewMade()
                | p.PartialImageMade()
                | p.ImageDone()
            ):
                self._seen += 1
                if self._seen > self._most:
                    raise EngineDied("it sent more frames than a run has")
        match received.event:
            case p.ReadingLora(index=index) if index is not None and index >= self._loras:
                raise EngineDied("it reads a LoRA that the run does not have")
            case p.StepDone() as step if step.image >= self._images or not 0 < step.step <= step.steps:
                raise EngineDied("it sent a step that the run does not have")
            case p.PreviewMade() as preview if preview.index >= self._images:
                raise EngineDied("it sent a preview of an image that the run does not have")
            case p.PreviewMade() if len(sizes) != 1:
                raise EngineDied("it sent a preview without its image")
            case p.PartialImageMade() as partial:
                if partial.index >= self._images or partial.number >= self._partial_images:
                    raise EngineDied("it sent a partial image that the run does not have")
                if sizes != [partial.width * partial.height * 3]:
                    raise EngineDied("it sent a partial image without its pixels")
            case p.ImageDone() as image:
                if image.index in self._sent or image.index >= self._images:
                    raise EngineDied("it sent an image twice, or one that the run does not have")
                if sizes != [image.width * image.height * 3]:
                    raise EngineDied("it sent an image without its pixels")
                self._sent.add(image.index)
            case p.RunDone() if len(self._sent) < self._images:
                raise EngineDied("it ended a run without all of its images")
