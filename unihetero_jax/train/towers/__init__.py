"""Small towers of our own: their configs, networks and learners."""
