"""The scheduler: the queue, which job runs next and on which engine, and how each ends. What a job is stands in jobs/."""
