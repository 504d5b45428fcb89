"""The model code: a child process that loads checkpoints and runs them, and the service's side of it.

``interface``, ``protocol`` and ``local`` are for the service; everything else runs in the child alone.
"""
