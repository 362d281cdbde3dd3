"""Benchmarks: a script that only imports torch."""

import torch

assert torch.__version__
