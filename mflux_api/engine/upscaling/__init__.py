"""SeedVR2: one still image becomes a larger one, in one step and without a prompt.

FLUX.2's own steps are in ``sampling``.
"""
