"""Level 6: the command line. Options become a ``Job`` once, at the door."""
