"""Level 2: AMD's GPUs as amdsmi tells of them, and what they are compiled for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from typing import Any

from ..model import Gpu
from .cores import domain_of
from .visible import Folder, Sight, broken, select, unnamed, words_of


def look(env: Mapping[str, str], dev: Folder) -> Sight:
    """AMD's GPUs that a process with this environment can use, and what is wrong with others."""
    if not may_be_there(dev):
        return Sight()
    try:
        amdsmi = import_amdsmi()
        amdsmi.amdsmi_init()
    except Exception as error:
        return Sight((), broken("AMD", "amdsmi", error))
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        found = tuple(_gpu(amdsmi, index, handle) for index, handle in enumerate(handles))
    except Exception as error:
        return Sight((), f"AMD: the driver says: {words_of(error)}")
    finally:
        with suppress(Exception):
            amdsmi.amdsmi_shut_down()
    # ROCR_VISIBLE_DEVICES hides devices below HIP, which then counts what is left; so it is for ranks: swap_rocr_hip.
    rocr = env.get("ROCR_VISIBLE_DEVICES")
    left = select(found, rocr)
    second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
    if second == "CUDA_VISIBLE_DEVICES" and env.get(second) == rocr:  # Slurm's copy
        second = ""
    trouble = unnamed(found, "ROCR_VISIBLE_DEVICES", env) or unnamed(left, second, env)
    return Sight(select(left, env.get(second)), f"AMD: {trouble}" if trouble else "")


def may_be_there(dev: Folder) -> bool:
    """Whether amdsmi is worth asking."""
    return os.path.exists(os.path.join(dev, "kfd"))


def import_amdsmi() -> Any:
    """The module. Without the driver's own library it prints two lines to stdout, and fails over a key that it lacks.

    Raises:
        ImportError: with those lines; ``ModuleNotFoundError`` where the package is not installed.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            import amdsmi
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(said.getvalue() or str(error)) from error
    return amdsmi


def _gpu(amdsmi: Any, index: int, handle: Any) -> Gpu:
    """Only its being there counts: in a container, say, the driver does not tell everything."""

    def ask(question: Callable[[], Any]) -> Any:
        with suppress(Exception):
            return question()
        return None

    asic = ask(lambda: amdsmi.amdsmi_get_gpu_asic_info(handle)) or {}
    serial = str(asic.get("asic_serial", ""))
    if serial.startswith("0x"):
        uuid = serial[2:].lower()
    else:
        uuid = ask(lambda: str(amdsmi.amdsmi_get_gpu_device_uuid(handle))) or f"AMD-{index}"
    memory = ask(lambda: int(amdsmi.amdsmi_get_gpu_memory_total(handle, amdsmi.AmdSmiMemoryType.VRAM))) or 0
    bus = ask(lambda: str(amdsmi.amdsmi_get_gpu_device_bdf(handle)))
    return Gpu(index, str(asic.get("market_name", "AMD GPU")), memory, uuid, domain_of(bus) if bus else -1)


def architecture(dev: Folder, topology: Folder) -> str:
    """From the kernel driver, which has always told it; amdsmi does so since ROCm 6.

    A node of the topology that is no GPU has the version 0. 90402 is gfx942, and 90010 gfx90a: the last two pairs of
    digits are written as hexadecimal ones.
    """
    if not may_be_there(dev):
        return ""
    nodes: list[str] = []
    with suppress(OSError):
        nodes = sorted((name for name in os.listdir(topology) if name.isdigit()), key=int)
    for node in nodes:
        with suppress(OSError), open(os.path.join(topology, node, "properties"), encoding="ascii") as file:
            for line in file:
                name, _, number = line.strip().partition(" ")
                if name == "gfx_target_version" and number.isdigit() and int(number):
                    major, rest = divmod(int(number), 10_000)
                    return f"gfx{major}{rest // 100:x}{rest % 100:x}"
    return ""
