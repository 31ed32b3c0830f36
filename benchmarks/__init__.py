"""What speed, memory and learning are measured with; RESULTS.md has the figures."""
