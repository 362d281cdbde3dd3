"""All that a script may leave to its interpreter: exit handlers, threads, loader workers, sub-processes, pools."""

import atexit
import multiprocessing
import subprocess
import sys
import threading
import time

import torch
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.tensor(i * i)


def late():
    time.sleep(0.3)
    print("a thread that outlives main")


def double(x):
    return 2 * x


if __name__ == "__main__":
    atexit.register(print, "at exit, registered first")
    atexit.register(lambda: print("at exit, on stderr", file=sys.stderr))
    print("squares", [batch.tolist() for batch in DataLoader(Squares(), batch_size=2, num_workers=2)])
    with multiprocessing.Pool(2) as pool:
        print("pool", pool.map(double, [1, 2, 3]))
    subprocess.run(["sh", "-c", "echo a sub-process; echo its stderr >&2"], check=True)
    sys.stdout.write("buffered, no line end yet; ")
    threading.Thread(target=late).start()
    print("main ends", sys.argv[1:])
