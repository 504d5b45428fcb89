"""Tools for assistants over the Model Context Protocol: `mflux-api mcp`, an extra.

One implementation of the tools works on a small interface with two backends: a service in this process, or a running
server. Nothing else of the package imports this folder but its command, and only when that is run.
"""
