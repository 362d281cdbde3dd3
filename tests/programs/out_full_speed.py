"""Prints for SECONDS as fast as it can, then writes into COUNTS.<rank> how many lines those were."""

import os
import sys
import time

rank, seconds, counts = os.environ["RANK"], float(sys.argv[1]), sys.argv[2]
end = time.monotonic() + seconds
i = 0
while time.monotonic() < end:
    sys.stdout.write("".join(f"{rank} {n}\n" for n in range(i, i + 1000)))
    i += 1000
with open(f"{counts}.{rank}", "w") as file:
    file.write(str(i))
print("ready", flush=True)
with open(sys.argv[3]) as gate:
    gate.read()
