"""The words of ``jsrun``: resource sets, which of them are on which host, and the tasks in them. Pure functions.

After the Job Step Manager's manual and the user guides of CORAL machines. A resource set has cores and GPUs of one
host; a step waits until those that it asks for are free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .grammar import Grammar, Refusal, one_of
from .pool import Placement, Pool, Share

_ALL = -1


def _amount(word: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text != word and not re.fullmatch("[0-9]+", text):
            raise ValueError(f"a number or {word}")
        return _ALL if text == word else int(text)

    return read


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(pattern)
        return text

    return read


_GRAMMAR = Grammar(
    "jsrun",
    """
    -n --nrs=int
    -r --rs_per_host=int
    -a --tasks_per_rs=int
    -p --np=int
    -c --cpu_per_rs=cpus
    -g --gpu_per_rs=gpus
    -b --bind=bind
    -d --launch_distribution=order
    -h --chdir=str
    -E --env=str *
    -M --smpiargs=str
    -o --stdio_stdout=str
    -k --stdio_stderr=str
    -t --stdio_input=str
    -X --exit_on_error=switch
    -e --stdio_mode=mode
    -I --stdin_rank=whole
    """,
    kinds={
        "cpus": _amount("ALL_CPUS"),
        "gpus": _amount("ALL_GPUS"),
        "bind": _matching("none|rs|packed:[1-9][0-9]*"),
        "order": _matching("packed|cyclic|plane:[1-9][0-9]*"),
        "switch": lambda text: int(one_of("0", "1")(text)),
        "mode": one_of("collected", "prepended"),
    },
    status=1,
)


@dataclass(frozen=True)
class Layout:
    """What a ``jsrun`` asks for: resource sets of so many cores and GPUs, at most ``per_host`` on one host."""

    options: Mapping[str, Any]
    command: Sequence[str]
    sets: int
    per_host: int
    cpus: int
    gpus: int
    environ: Mapping[str, str]

    def fit(self, pool: Pool) -> Placement | None:
        found, left = Placement(), self.sets
        for name in pool.up():
            free = pool.free(name)
            rooms = [self.per_host, left, len(free.cores) // self.cpus]
            if self.gpus:
                rooms.append(len(free.gpus) // self.gpus)
            if count := min(rooms):
                found[name] = Share(free.cores[: count * self.cpus], free.gpus[: count * self.gpus])
                left -= count
        return None if left else found

    def tasks(self, placement: Placement) -> Iterator[tuple[str, Sequence[int], dict[str, str]]]:
        """Of each rank the host, the cores that it may use, and what it is told."""
        sets = [
            (name, share.cores[at : at + self.cpus])
            for name, share in placement.items()
            for at in range(0, len(share.cores), self.cpus)
        ]
        order = list(self._order(len(sets)))
        hosts = [sets[which][0] for which in order]
        for rank, which in enumerate(order):
            host, cores = sets[which]
            within = order[:rank].count(which)
            local = {"RANK": rank, "SIZE": len(order), "LOCAL_RANK": hosts[:rank].count(host)}
            local["LOCAL_SIZE"] = hosts.count(host)
            told = {f"{kind}_{name}": str(value) for kind in _TOLD for name, value in local.items()}
            told["PMIX_RANK"] = str(rank)
            if self.gpus:
                told["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(self.gpus)))
            yield host, self._bound(cores, within), told | dict(self.environ)

    def _bound(self, cores: Sequence[int], within: int) -> Sequence[int]:
        bind = self.options.get("bind", "packed:1")
        if bind in ("none", "rs"):
            return cores
        width = int(bind.partition(":")[2])
        return cores[within * width : (within + 1) * width] or cores

    def _order(self, sets: int) -> Iterator[int]:
        """The resource set of each rank."""
        total = self.options.get("np") or sets * self.options.get("tasks_per_rs", 1)
        share = -(-total // sets)
        kind, _, width = self.options.get("launch_distribution", "packed").partition(":")
        chunk = {"packed": share, "cyclic": 1}.get(kind) or int(width)
        room = dict.fromkeys(range(sets), share)
        while total:
            for which in room:
                count = min(chunk, room[which], total)
                room[which] -= count
                total -= count
                yield from [which] * count


_TOLD = ("JSM_NAMESPACE", "OMPI_COMM_WORLD")


def layout(
    words: Sequence[str], environ: Mapping[str, str], cpus: int, gpus: int, hosts: int, tmpdir_breaks: bool
) -> Layout:
    """What these words ask for on ``hosts`` hosts with so many cores and GPUs each.

    Raises:
        Refusal: they ask for what cannot be.
    """
    parsed = _GRAMMAR.parse(words)
    if not parsed.rest:
        raise _GRAMMAR.refuse("no command")
    if "np" in parsed and "tasks_per_rs" in parsed:
        raise _GRAMMAR.refuse("--np and --tasks_per_rs exclude each other")
    told = _told(parsed.get("env", []), environ)
    if tmpdir_breaks and "TMPDIR" in {**environ, **told}:
        raise Refusal("jsrun: Error initializing RM connection. Exiting. (TMPDIR is set)")
    cores = parsed.get("cpu_per_rs", 1)
    devices = parsed.get("gpu_per_rs", 0)
    cores, devices = cpus if cores == _ALL else cores, gpus if devices == _ALL else devices
    most = min(cpus // cores if cores else 0, gpus // devices if devices else cpus)
    per_host = parsed.get("rs_per_host", most)
    if not most or per_host > most:
        raise Refusal(
            f"jsrun: a host has not enough for {max(per_host, 1)} resource sets of {cores} CPUs, {devices} GPUs"
        )
    sets = parsed.get("nrs", per_host * hosts if "rs_per_host" in parsed else 1)
    if sets > per_host * hosts:
        raise Refusal(
            f"Error: nrs ({sets}) should not be greater than rs_per_host ({per_host}) * number of servers available "
            f"({hosts})."
        )
    return Layout(parsed.options, parsed.rest, sets, per_host, cores, devices, told)


def _told(items: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    told = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals and name not in environ:
            raise Refusal(f"jsrun: --env {name}: not set in the environment")
        told[name] = value if equals else environ[name]
    return told
