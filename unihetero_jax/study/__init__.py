"""Studies: a grid of runs, the claims that it tests, and a report that says which of them hold."""
