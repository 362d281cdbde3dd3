"""A test bed: real hosts with real sshd, as namespaces of this machine. Linux and root are needed; see ``missing``.

    with Bed(3) as bed:
        subprocess.run(["ssh", "-F", bed.ssh_config, "node1", "hostname"])
        bed.poweroff("node2")

Every host has network, name, processes, mounts and IPC of its own: hostname, ``/etc/hosts``, machine-id, boot_id, empty
``/tmp``, ``/run``, ``/dev/shm`` and home folders in memory, one interface, no resolver, no way out. The file system is
otherwise this machine's, and so are the paths in ``share``: there the interpreter, zlaunch and pytest's folders are.
This machine is the ``head``. A killed bed leaves no network and no running process; the next one removes its folders.
"""

from .hosts import Bed
from .needs import default_share, missing
from .programs import BedError

__all__ = ["Bed", "BedError", "default_share", "missing"]
