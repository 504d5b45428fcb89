"""The ``mflux-api`` command: one file for each command, and what only a process of its own needs.

Signals, exit statuses and the set-up of logging are here and nowhere else.
"""
