"""What a generator is told once: the limits that it enforces on its engine."""

import attrs

from mflux_api.actors.generator.oom_evidence import OOMEvidence
from mflux_api.actors.generator.quarantine import Quarantine


@attrs.frozen(kw_only=True)
class GeneratorOptions:
    """The limits a generator enforces."""

    step_timeout: float = 300.0
    """Seconds without a finished step after which a running child counts as hung."""
    silence: float = 120.0
    """Seconds without a word of a load after which the child counts as hung; its heartbeat is not a word."""
    cancel_grace: float = 10.0
    """Seconds a child has to stop a run or a load that is not wanted any more."""
    oom_evidence: OOMEvidence = attrs.field(factory=OOMEvidence)
    """What the system killed for want of memory; one for all engines of a service."""
    quarantine: Quarantine = attrs.field(factory=Quarantine)
    """What engines died over; one for all engines of a service."""
    previews: bool = True
    """Whether runs make previews."""
