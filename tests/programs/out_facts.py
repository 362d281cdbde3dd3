"""Prints what a script finds of itself, as JSON."""

import dataclasses
import inspect
import json
import os
import pickle
import signal
import sys
import threading
import typing


@dataclasses.dataclass
class Point:
    x: int
    y: "int"


def facts() -> dict[str, object]:
    import __main__

    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv[1:],
        "path0": sys.path[0],
        "name": __name__,
        "file": __file__,
        "package": __package__,
        "doc": __doc__,
        "spec": None if __spec__ is None else __spec__.name,
        "loader": type(__loader__).__name__,
        "cwd": os.getcwd(),
        "main": __main__.__file__ == __file__ and __main__.facts is facts,
        "names": sorted(vars(__main__)),
        "annotations": typing.get_type_hints(Point)["y"] is int,
        "pickled": pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2) and Point.__module__,
        "source": inspect.getsource(Point).splitlines()[1],
        "executable": sys.executable,
        "flags": list(sys.flags),
        "stdin": sys.stdin.read(),
        "encoding": (sys.stdout.encoding, sys.stderr.encoding, sys.stdout.errors, sys.stderr.errors),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "threads": [thread.name for thread in threading.enumerate()],
        "umask": os.umask(0),
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:3],
        "next": os.open("/", os.O_RDONLY),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
