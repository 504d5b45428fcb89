"""The ``mflux-api`` command: one file for each command, and what only a process of its own needs.

Signals, exit statuses and the set-up of logging are here and nowhere else.
"""

from mflux_api.system.native_libraries import searching_without_programs

# Trio searches for libpthread when it is first imported, and every command imports it.
with searching_without_programs():
    import trio  # noqa: F401
