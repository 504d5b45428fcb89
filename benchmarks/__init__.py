"""Programs that measure, and print the tables in docs/performance.md; each compares two things in one run.

All of them take ``--json FILE`` and ``--markdown FILE`` (:mod:`benchmarks.report`).
"""
