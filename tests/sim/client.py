"""A program: every command of a simulated scheduler. Its name and words go to the simulator, which answers.

It lies as ``bin/NAME`` beside the simulator's ``socket``. Both directions carry lines of JSON. First goes the request;
then what is read from stdin (``data``, ``end``), once that is asked for (``stdin``), and signals, those that the
simulator wants to hear of (``trap``; all others do as usual). What comes is written (``out``) until the exit status
does (``exit``).
"""

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

NAME = os.path.basename(sys.argv[0])


def terminals() -> list[bool]:
    found = []
    for stream in (0, 1, 2):
        try:
            found.append(os.isatty(stream))
        except OSError:
            found.append(False)
    return found


class Client:
    def __init__(self) -> None:
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "socket"))
        self.stdin = False
        self.ears, mouth = socket.socketpair()
        self.ears.setblocking(False)
        mouth.setblocking(False)
        signal.set_wakeup_fd(mouth.fileno())
        self.mouth = mouth
        self.saved: list[object] | None = None

    def tell(self, **frame: object) -> None:
        self.link.sendall(json.dumps(frame).encode() + b"\n")

    def talk(self) -> int:
        try:
            cwd = os.getcwd()
        except OSError:  # it was removed
            cwd = os.environ.get("PWD", "/")
        self.tell(
            argv=[NAME, *sys.argv[1:]],
            environ=dict(os.environ),
            cwd=cwd,
            host=os.uname().nodename,
            tty=terminals(),
            umask=os.umask(0o022),
        )
        rest = b""
        while True:
            sources: list[socket.socket | int] = [self.link, self.ears, *([0] if self.stdin else [])]
            ready, _, _ = select.select(sources, [], [])
            if self.ears in ready:
                for number in self.ears.recv(64):
                    self.tell(signal=number)
            if self.link in ready:
                data = self.link.recv(1 << 16)
                if not data:
                    return self.complain("the scheduler is gone")
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    status = self.heed(json.loads(line))
                    if status is not None:
                        return status
            if 0 in ready:
                self.read()

    def read(self) -> None:
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if data:
            self.tell(data=data.decode("latin-1"))
        else:
            self.stdin = False
            self.tell(end=True)

    def heed(self, frame: dict[str, object]) -> int | None:
        """What the simulator says; the exit status if that is it."""
        match frame:
            case {"out": int(stream), "data": str(data)}:
                rest = data.encode("latin-1")
                while rest:
                    rest = rest[os.write(stream, rest) :]
            case {"trap": list(numbers)}:
                for number in numbers:
                    signal.signal(number, lambda *_: None)
            case {"stdin": bool(wanted)}:
                self.stdin = wanted
            case {"raw": True}:
                self.raw()
            case {"exec": list(argv), "environ": dict(environ)}:
                return self.become(argv, environ)
            case {"exit": int(status)}:
                return status
        return None

    def become(self, argv: list[str], environ: dict[str, str]) -> int:
        """Another program, here, in our place."""
        signal.set_wakeup_fd(-1)
        try:
            os.execvpe(argv[0], argv, environ)
        except OSError as error:
            return self.complain(f"{argv[0]}: {error.strerror}") + 126

    def raw(self) -> None:
        """The terminal passes each key on, Ctrl-C too, until we end."""
        import termios
        import tty

        self.saved = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)  # what was typed already is not lost

    def restore(self) -> None:
        if self.saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self.saved)  # type: ignore[arg-type]

    def complain(self, text: str) -> int:
        with suppress(OSError):
            os.write(2, f"{NAME}: {text}\n".encode())
        return 1


def main() -> int:
    try:
        client = Client()
    except OSError as error:
        os.write(2, f"{NAME}: no scheduler: {error}\n".encode())
        return 1
    try:
        return client.talk()
    except ConnectionError:
        return client.complain("the scheduler is gone")
    except BrokenPipeError:
        return 1
    finally:
        client.restore()


if __name__ == "__main__":
    os._exit(main())
