"""Small checkpoints of FLUX.2 Klein's architecture, for demonstrations and tests, and the one in the package.

How that one was trained is in ``training/demo``.
"""
