"""Programs that print the tables in docs/performance.md; each compares two things in one run."""
