"""A world small enough to be learnt in an hour on a CPU; see README.md."""
