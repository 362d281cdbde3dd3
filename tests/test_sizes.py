"""How many nodes and ranks: every form of the words about size, on several systems."""

from __future__ import annotations

from typing import Any

import pytest

from zlaunch.model import HostFacts
from zlaunch.systems.description import System, describe
from zlaunch.systems.params import DescriptionError, parse_params
from zlaunch.systems.sizes import Asked, Size, size


def on(host: str, p: str = "", *, numa: int = 2, queue: str | None = None) -> System:
    facts = HostFacts(hostname=host, pid=1, cores=6, numa_domains=numa)
    params = parse_params(p.split())
    return describe(host, {}, queue=queue, params=params, file={}, facts=facts)


def asked(system: System, **words: Any) -> tuple[int | None, int]:
    found = size(Asked(**words), system)
    return found.nodes, found.ranks_per_node


TIOGA = on("tioga1")  # 8 GPUs of 64 GB
TUOLUMNE = on("tuolumne1")  # 4 GPUs of 128 GB
DESK = on("desk")  # no GPU, 2 NUMA domains


@pytest.mark.parametrize(
    ("system", "words", "expected"),
    [
        # ranks per node: the GPUs of a node, without GPUs its NUMA domains
        (TIOGA, {}, (None, 8)),
        (TIOGA, {"nodes": 2}, (2, 8)),
        (TUOLUMNE, {"nodes": 3}, (3, 4)),
        (DESK, {"nodes": 2}, (2, 2)),
        (on("desk", numa=0), {}, (None, 1)),
        (TIOGA, {"procs_per_node": 4}, (None, 4)),
        (TIOGA, {"nodes": 2, "procs_per_node": 4}, (2, 4)),
        (DESK, {"nodes": 4, "procs_per_node": 8}, (4, 8)),
        (TIOGA, {"procs_per_node": "auto"}, (None, 8)),
        (TIOGA, {"procs_per_node": "gpu"}, (None, 8)),
        (TIOGA, {"procs_per_node": "cpu"}, (None, 64)),
        (on("frontier1"), {"procs_per_node": "cpu"}, (None, 56)),
        (TIOGA, {"gpus_per_proc": 4}, (None, 2)),
        (TIOGA, {"nodes": 2, "procs_per_node": 2, "gpus_per_proc": 4}, (2, 2)),
        (TIOGA, {"gpus_per_proc": 3, "procs_per_node": "gpu"}, (None, 2)),
        # -g: nodes = ceil(G / ranks per node)
        (TIOGA, {"gpus_at_least": 32}, (4, 8)),
        (TIOGA, {"gpus_at_least": 33}, (5, 8)),
        (TUOLUMNE, {"gpus_at_least": 32}, (8, 4)),
        (TUOLUMNE, {"gpus_at_least": 1}, (1, 4)),
        (DESK, {"gpus_at_least": 32}, (16, 2)),
        (TIOGA, {"gpus_at_least": 32, "gpus_per_proc": 2}, (4, 4)),  # a rank has two of the GPUs
        # --gpumem-at-least: GPUs = ceil(M / memory), nodes = ceil(GPUs / ranks), one node: as many ranks as GPUs
        (TIOGA, {"gpumem_at_least": 80}, (1, 2)),
        (TIOGA, {"gpumem_at_least": 64}, (1, 1)),
        (TIOGA, {"gpumem_at_least": 64.5}, (1, 2)),
        (TIOGA, {"gpumem_at_least": 512}, (1, 8)),
        (TIOGA, {"gpumem_at_least": 513}, (2, 8)),
        (TUOLUMNE, {"gpumem_at_least": 1024}, (2, 4)),
        (TUOLUMNE, {"gpumem_at_least": 1024, "procs_per_node": "auto"}, (2, 4)),
        (TIOGA, {"gpumem_at_least": 256, "gpus_per_proc": 2}, (1, 2)),
        (on("desk", "mem_per_gpu=80 gpus_per_node=8"), {"gpumem_at_least": 640}, (1, 8)),
        # with -n, as in the reference's example
        (TIOGA, {"gpumem_at_least": 80, "procs_per_node": 8}, (1, 8)),
        (TIOGA, {"gpumem_at_least": 80, "procs_per_node": 1}, (2, 1)),
        (TUOLUMNE, {"gpumem_at_least": 1024, "procs_per_node": 8}, (2, 8)),  # a node has no more than 4 GPUs
        (DESK, {"gpumem_at_least": 80, "procs_per_node": 8}, (1, 8)),
        # and with the others that nobody forbids
        (TIOGA, {"gpumem_at_least": 80, "nodes": 3}, (3, 8)),
        (DESK, {"gpumem_at_least": 80, "nodes": 3, "procs_per_node": 8}, (3, 8)),
        (TIOGA, {"gpumem_at_least": 80, "gpus_at_least": 16}, (2, 8)),
        (TIOGA, {"gpumem_at_least": 640, "gpus_at_least": 1}, (2, 8)),
    ],
)
def test_nodes_and_ranks(system: System, words: dict[str, Any], expected: tuple[int | None, int]) -> None:
    assert asked(system, **words) == expected


@pytest.mark.parametrize(
    ("system", "words", "said"),
    [
        (TIOGA, {"gpus_at_least": 8, "nodes": 1}, "-g and -N exclude each other"),
        (TIOGA, {"gpus_at_least": 8, "procs_per_node": 1}, "-g and -n exclude each other"),
        (TIOGA, {"gpus_at_least": 8, "procs_per_node": "auto"}, "-g and -n exclude each other"),
        (TIOGA, {"gpus_at_least": 0}, "-g 0: at least 1"),
        (TIOGA, {"nodes": 0}, "-N 0: at least 1"),
        (TIOGA, {"procs_per_node": 0}, "-n 0: at least 1"),
        (TIOGA, {"gpus_per_proc": 0}, "--gpus-per-proc 0: at least 1"),
        (TIOGA, {"gpumem_at_least": 0.0}, "--gpumem-at-least 0: expected a number of GB above 0"),
        (TIOGA, {"gpumem_at_least": float("nan")}, "expected a number of GB above 0"),
        (DESK, {"gpumem_at_least": 80}, "the memory of a GPU is not known here; mem_per_gpu=GB: say it with -p"),
        (on("perlmutter"), {"gpumem_at_least": 80}, "the memory of a GPU is not known here"),
        (TIOGA, {"gpumem_at_least": 2048, "nodes": 3}, "the GPUs of -N 3 have 1536 GB; -N 4 is enough"),
        (on("desk", "gpus_per_node=0"), {"procs_per_node": "gpu"}, "-n gpu: a node has no GPU"),
    ],
)
def test_what_cannot_be_meant_or_met(system: System, words: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        size(Asked(**words), system)
    assert said in str(caught.value)


@pytest.mark.parametrize("host", ["desk", "tuolumne1", "matrix1", "lassen1", "perlmutter", "ipa1"])
def test_the_sizes_of_the_references_examples_can_be_had_everywhere(host: str) -> None:
    pairs = [(1, 4), (2, 8), (4, 8), (2, 4), (1, 8), (8, 8), (8, 4), (16, 8), (2, None)]
    for nodes, ranks in pairs:
        words = Asked(nodes=nodes, procs_per_node=ranks)
        assert asked(on(host), nodes=nodes, procs_per_node=ranks)[0] == size(words, on(host)).nodes == nodes
    assert asked(on(host), nodes=2, procs_per_node=2, gpus_per_proc=4) == (2, 2)
    assert size(Asked(gpus_at_least=32), on(host)).nodes
    assert asked(on(host), gpumem_at_least=80, procs_per_node=8)[1] == 8
    assert asked(on(host, "gpus_per_node=8 gpu_arch=a100"), nodes=2) == (2, 8)
    assert asked(on(host, "cores_per_node=128 mem_per_gpu=80"), nodes=4, procs_per_node=8) == (4, 8)


def test_hosts_that_nobody_described_count_for_themselves() -> None:
    assert size(Asked(), DESK).workers == "auto"
    assert size(Asked(procs_per_node="gpu"), DESK).workers == "gpu"
    assert size(Asked(procs_per_node="cpu"), TIOGA).workers == "cpu"
    assert size(Asked(procs_per_node=3), DESK).workers == 3
    assert size(Asked(), TIOGA).workers == 8
    assert size(Asked(), on("desk", "gpus_per_node=4")).workers == 4
    assert size(Asked(gpus_at_least=4), DESK).workers == 2  # the nodes were counted with it


def test_the_gpus_that_a_node_is_asked_for() -> None:
    assert size(Asked(), TIOGA).gpus_per_node == 8
    assert size(Asked(procs_per_node=2), TIOGA).gpus_per_node == 2
    assert size(Asked(procs_per_node=2, gpus_per_proc=4), TIOGA).gpus_per_node == 8
    assert size(Asked(procs_per_node=16), TIOGA).gpus_per_node == 8
    assert size(Asked(procs_per_node=16), DESK).gpus_per_node == 0


def test_what_the_user_should_hear() -> None:
    def notes(system: System, **words: Any) -> tuple[str, ...]:
        return size(Asked(**words), system).notes

    unknown = "--gpumem-at-least 80: the memory of a GPU is not known here"
    assert notes(TIOGA) == notes(DESK, procs_per_node=8) == ()
    assert notes(DESK, gpumem_at_least=80, procs_per_node=8) == (f"{unknown}; one node is taken to have it",)
    assert notes(DESK, gpumem_at_least=80, procs_per_node=8, nodes=2) == (
        f"{unknown}; the nodes of -N are taken to have it",
    )
    assert notes(DESK, gpus_at_least=8) == ("-g 8: no GPU is known of here, so this is a number of ranks",)
    assert notes(TUOLUMNE, procs_per_node=2, gpus_per_proc=4) == (
        "the ranks of a node want 8 GPUs, 2 times 4; it has 4",
    )


def test_a_size_is_a_value() -> None:
    assert size(Asked(nodes=2), TIOGA) == Size(nodes=2, ranks_per_node=8, workers=8, gpus_per_proc=1, gpus_per_node=8)
