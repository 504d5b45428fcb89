"""A model hub on loopback."""
