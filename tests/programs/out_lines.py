"""Prints COUNT different lines on stdout, and after every tenth one on stderr."""

import os
import sys

rank, count = os.environ["RANK"], int(sys.argv[1])
for i in range(count):
    print(f"{rank} out {i}")
    if i % 10 == 9:
        print(f"{rank} err {i}", file=sys.stderr)
