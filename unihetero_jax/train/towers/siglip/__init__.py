"""Training of a SigLIP image tower beside a text tower."""
