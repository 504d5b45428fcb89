"""The real clients of this server, unmodified, against a running one: docs/clients.md says which and how far."""
