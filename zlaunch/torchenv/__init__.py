"""Level 3: what PyTorch needs around it - the ranks' environment, threads, and the words by which it says that a peer is gone."""
