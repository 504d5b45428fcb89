"""Webhooks: sending the end of a job to the address that its request names, and nowhere that it must not reach."""
