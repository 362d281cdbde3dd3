"""The fakes that tests of zlaunch, and of what is built on it, may use: a clock, hosts, and the link between them.

``Pair`` joins the supervisor's core and the agents' cores across an in-memory link, with simulated hosts below: their
processes are names in a dict, and die when a test says so. No socket, process or sleep is involved, and no time
passes but what ``advance`` lets pass. What it does not simulate: the wire, pipes and their logs, and real processes.
"""

from __future__ import annotations

from .pair import Clock, FakeHost, Pair, order

__all__ = ["Clock", "FakeHost", "Pair", "order"]
