"""What the command line's exit status says."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70
"""The supervision tree stopped restarting a part of it, or a shutdown was stuck (``EX_SOFTWARE``)."""
EXIT_INTERRUPTED = 130
