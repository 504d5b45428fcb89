"""Small checkpoints of FLUX.2 Klein's architecture, for demonstrations and tests."""
