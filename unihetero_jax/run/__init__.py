"""A workdir as a whole: what is trained, evaluated and drawn in it."""
