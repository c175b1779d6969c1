"""Studies: a grid of runs, the claims that it tests, and a report that says which of them hold.

A study of your own is a Python file with ``STUDY = Study(…)``, made of the names exported here.
"""

from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Scaling, Study

__all__ = ["Claim", "Levels", "Metric", "Scale", "Scaling", "Study"]
