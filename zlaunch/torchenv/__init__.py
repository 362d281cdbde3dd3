"""Level 3: what PyTorch needs around it: the ranks' environment, threads, and how it says that a peer is gone."""
