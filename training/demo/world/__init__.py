"""The procedural world: scenes as rows of small integers (``spec``), and their batched renderer (``render``).

Captions and instructions are made outside, in ``training.demo``.
"""
