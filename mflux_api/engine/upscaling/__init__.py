"""SeedVR2: one still picture becomes a larger one, in one step and without a prompt."""
