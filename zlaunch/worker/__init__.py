"""Level 4: the fork template and the rank: the only processes that import torch and run the user's code."""
