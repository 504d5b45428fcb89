"""What a job is, from the request as asked to its events: values and rules without I/O.

Queueing and running jobs is in ``actors``, keeping them in ``storage``.
"""
