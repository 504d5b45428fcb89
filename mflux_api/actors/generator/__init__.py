"""The generator: one engine child, what it is told to run, and why it died. What is resident is the loader's."""
