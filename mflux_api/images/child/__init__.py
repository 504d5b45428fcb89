"""The decoder's child: whatever reads images and headers of strangers, in a process that may be killed with its order.

``client`` is the service's side and ``protocol`` what both sides say; all other modules are the child's alone.
"""
