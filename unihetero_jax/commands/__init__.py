"""The verbs of ``unihetero``: the flags of each, and the function that it calls."""
