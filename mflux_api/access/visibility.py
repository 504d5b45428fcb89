"""Which jobs are there for someone who asks, by their owners: a value that every question about jobs can carry."""

import attrs


@attrs.frozen(kw_only=True)
class Visibility:
    """All jobs, unless one of the two says otherwise."""

    only: str | None = None
    """The one owner whose jobs are there."""
    hidden: tuple[str, ...] = ()
    """Owners whose jobs are not there."""

    def shows(self, owner: str) -> bool:
        """Whether an owner's jobs are there."""
        return self.only in (None, owner) and owner not in self.hidden


ALL_JOBS = Visibility()
