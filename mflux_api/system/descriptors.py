"""How many files and connections this process may have open at one time."""

import resource
from contextlib import suppress

_MOST = 65_536
"""More than a service needs: some systems give a million, and a table of that size to each child."""
_MACOS_MOST = 10_240
"""macOS refuses more (OPEN_MAX), whatever it says of the hard limit."""


def descriptor_limit() -> int:
    """Return how many the process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def raise_descriptor_limit() -> int:
    """Raise the soft limit as far as the system lets this process, and return it; it is never lowered.

    Shells and service managers give a thousand, or 256, for programs that look at all numbers below the limit. For the
    command line only: an embedding program decides for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (_MOST, _MACOS_MOST):
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    return descriptor_limit()
