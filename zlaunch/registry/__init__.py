"""Level 5: runs and batch jobs as their user sees them from elsewhere: written down, and told to whoever watches."""
