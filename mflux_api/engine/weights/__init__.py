"""Checkpoint folders to modules with weights: read, compared with the configuration, quantized, kept on disk.

What is computed with the modules is in ``sampling``.
"""
