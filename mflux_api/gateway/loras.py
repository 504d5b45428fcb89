"""Questions about LoRA files: which there are, and taking one away."""

from mflux_api.actors import messages as m
from mflux_api.errors import InternalError, LoraInUse
from mflux_api.gateway.questions import Questions
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.storage.loras import Removal
from mflux_api.system.threads import run_in_thread


class Loras(Questions):
    """Taking LoRAs away."""

    async def delete_lora(self, name: str) -> LoraFile:
        """Remove a LoRA's file; of a link the link alone. It is gone from the disk when this returns.

        Raises:
            LoraNotFound: none is listed by this name.
            LoraInUse: a job that waits or runs names it.
            LoraNotDeletable: it lies somewhere else, behind a link to a folder.
            InternalError: the disk refuses it.
        """
        removal = await self.read_loras(self.loras.plan_removal, name)
        async with self.lora_deletions.under_way:
            # From here on who has looked the file up looks again, once its job is counted.
            self.lora_deletions.begun += 1
            await self._delete(removal)
        return removal.file

    async def _delete(self, removal: Removal) -> None:
        jobs = await self._ask(self._to.scheduler, m.CountLoraJobs(names=removal.names))
        if jobs:
            raise LoraInUse(
                f"LoRA '{removal.file.name}' is named by {jobs} job(s) that wait or run; delete it "
                "when they have ended, or cancel them",
                {"name": removal.file.name, "jobs": jobs},
            )
        try:
            await run_in_thread(self.loras.remove, removal.file, limiter=self.lora_removers)
        except OSError as error:
            raise InternalError(
                "The LoRA cannot be removed; check that its folder is writable",
                {"reason": error.strerror or type(error).__name__},
            ) from None
