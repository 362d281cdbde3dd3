"""Simulators of schedulers that cannot be installed here: Flux, and LSF. They are strict, and start real processes.

    with Bed(3) as bed, Flux(bed) as flux:
        job = flux.submit("-N2", script)
        flux.wait(job, "COMPLETED")

Each puts its commands into a folder of the bed that every host sees; ``environ`` has it on PATH. A command is a small
program (``client.py``) that hands its words to the simulator, a thread of this process (``core.py``), which starts
tasks on the bed's hosts (``crew.py``, ``shepherd.py``) and keeps account of cores and GPUs (``pool.py``). What nobody
has seen a real program take, or read in its documentation, is refused (``grammar.py``).
"""
