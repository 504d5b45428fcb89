"""The scheduler: the queue, which job runs next and on which engine, and how each ends; a job itself is in jobs."""
