"""Benchmarks: ``python -m tests.benchmarks`` is ``python tests/benchmarks/run.py``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.argv[0] = str(Path(__file__).with_name("run.py"))
runpy.run_path(sys.argv[0], run_name="__main__")
