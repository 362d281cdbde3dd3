"""Level 4: the supervisor. ``core`` decides and does no I/O; ``loop`` does I/O and decides nothing."""
