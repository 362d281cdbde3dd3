"""A progress bar as tqdm draws one, redrawn 10,000 times, between two lines; then a line that ends as DOS lines do."""

import sys

print("before")
for i in range(10_001):
    sys.stdout.write(f"\r{i // 100:3d}%|{'#' * (i // 1000):10s}| {i}/10000")
    sys.stdout.flush()
sys.stdout.write("\n")
sys.stdout.write("dos\r\n")
print("after")
