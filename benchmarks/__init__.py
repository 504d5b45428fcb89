"""What the tables in docs/performance.md are printed by. Each compares two things in one run."""
