"""Mesh, logical axes, sharding checks, and the processes of a multi-host job."""
