"""What a GPU is compiled for: from NVML, and from the tree in which the AMD driver describes its devices."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest
from recorded_gpus import Board, Instinct, amd_machine, nvidia_machine

from zlaunch.systems.gpus import architecture, look

BOARDS = (
    Board("GPU-0", capability=(8, 0)),
    Board("GPU-1", slices=[Board("MIG-x"), Board("MIG-y")]),
    Board("GPU-2"),
    Board("GPU-3", capability=(0, 0)),
)


@pytest.mark.parametrize(
    ("visible", "arch"),
    [("0", "sm_80"), ("2", "sm_90"), ("MIG-x", "sm_90"), ("1", "sm_90"), (None, "sm_90"), ("", ""), ("3", "")],
)
def test_nvidia(visible: str | None, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = nvidia_machine(monkeypatch, tmp_path, BOARDS)
    gpus = look({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, tmp_path).gpus
    assert architecture(gpus, tmp_path, tmp_path) == arch
    assert nvml.open == 0
    nvml.refused = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert architecture(gpus, tmp_path, tmp_path) == ""


@pytest.mark.parametrize(
    ("number", "arch"),
    [("90402", "gfx942"), ("90010", "gfx90a"), ("90006", "gfx906"), ("100300", "gfx1030"), ("120001", "gfx1201")],
)
def test_amd(number: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    amd_machine(monkeypatch, tmp_path, [Instinct("0x2FFF74B500001000")])
    gpus = look({}, tmp_path).gpus
    for node, version in (("0", "0"), ("1", number), ("10", "110000")):
        (tmp_path / "nodes" / node).mkdir(parents=True)
        (tmp_path / "nodes" / node / "properties").write_text(f"simd_count 304\ngfx_target_version {version}\n")
    assert architecture(gpus, tmp_path, tmp_path / "nodes") == arch
    assert architecture((), tmp_path, tmp_path / "nodes") == ""
    assert architecture(gpus, tmp_path, tmp_path / "nothing") == ""


def test_the_other_maker_s_gpus_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that has both, where PyTorch is made for AMD's."""
    nvidia_machine(monkeypatch, tmp_path, BOARDS)
    amd_machine(monkeypatch, tmp_path, [Instinct("0x2FFF74B500001000")])
    assert architecture(look({}, tmp_path, "2.9.0+rocm6.4").gpus, tmp_path, tmp_path) == ""
