"""Plans for hardware that is not here: the real train step compiled ahead of time, its memory, work and traffic."""
