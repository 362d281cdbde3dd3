"""Prints for SECONDS as fast as it can, writes into COUNTS.<rank> how many lines those were, and waits for GATE."""

import os
import sys
import time

rank, seconds, counts, gate = os.environ["RANK"], float(sys.argv[1]), sys.argv[2], sys.argv[3]
end = time.monotonic() + seconds
i = 0
while time.monotonic() < end:
    sys.stdout.write("".join(f"{rank} {n}\n" for n in range(i, i + 1000)))
    i += 1000
with open(f"{counts}.new.{rank}", "w") as file:
    file.write(str(i))
os.rename(f"{counts}.new.{rank}", f"{counts}.{rank}")
while not os.path.exists(gate):
    time.sleep(0.01)
