"""Level 2: what a machine is, as values - cores, NUMA domains, GPUs."""
