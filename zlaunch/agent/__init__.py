"""Level 4: one agent per host, without torch. ``core`` decides and does no I/O; ``loop`` does I/O and decides not."""
