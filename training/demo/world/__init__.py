"""The procedural world: scenes as rows of small integers (``spec``), and a batched renderer for them (``render``)."""
