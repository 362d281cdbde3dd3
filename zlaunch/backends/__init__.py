"""Level 4: launch back ends: how agents come to be started."""

SCHEDULERS = ("flux", "slurm", "lsf")
"""Each is a module here with a subclass of ``Scheduler``. Flux comes first: it often runs within a job of another one,
and then it is who knows the nodes."""
