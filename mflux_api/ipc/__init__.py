"""Frames over pipes, and both ends of one child process.

What the frames mean is said in ``engine.protocol`` and ``hub.protocol``.
"""
