"""Mesh, logical axes → mesh axes, checks that parameters are sharded, multi-host start."""
