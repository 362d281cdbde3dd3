"""Level 4: how agents get started, one launch back end a module; each gives values that one place executes."""
