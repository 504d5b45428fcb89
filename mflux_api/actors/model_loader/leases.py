"""The leases on the models of one engine."""

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Reply


class Leases:
    """Leases by the reply to the question, which only its asker has: each has one owner from the question on."""

    def __init__(self) -> None:
        self._leases: dict[Reply[m.Lease], m.Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def models(self) -> set[str]:
        """The models that are leased."""
        return {lease.model for lease in self._leases.values()}

    def grant(self, request: m.Acquire, lease: m.Lease) -> None:
        """Answer with a lease, unless its asker is gone."""
        if request.reply.ok(lease):
            self._leases[request.reply] = lease

    def give_back(self, request: m.Acquire) -> m.Lease | None:
        """Take back what was granted to a question, and return it; ``None`` where that is nothing."""
        return self._leases.pop(request.reply, None)

    def keep_only(self, incarnation: int | None) -> None:
        """Forget those on the models of other engine children."""
        self._leases = {key: lease for key, lease in self._leases.items() if lease.incarnation == incarnation}
