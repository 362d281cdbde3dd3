"""A program that uses zlaunch, with a step running and a process that its rank has daemonised; waits for its death.

``sur_program.py ROLL [fork] [deaf] [exit] [raise]``: ``fork`` leaves a child that holds all of this program's
descriptors, ``deaf`` has a rank ignore SIGTERM, ``exit`` and ``raise`` end the program without a ``stop``.
"""

import sys

import survival_rig as rig

import zlaunch


def work(roll: str, deaf: bool) -> None:
    import os

    if deaf:
        rig.be_deaf()
    if os.environ["RANK"] == "0":
        rig.daemonise(roll)
    rig.sign_rank(roll)
    rig.sleep_for_ever()


def main() -> None:
    roll, *wishes = sys.argv[1:]
    launcher = zlaunch.Launcher(workers_per_host=2, backend=None, preload=(), log_dir=None, grace_period=1)
    launcher.start()
    if "fork" in wishes:
        rig.fork_one(roll)
    run = launcher.submit(work, roll, "deaf" in wishes)
    if "exit" in wishes or "raise" in wishes:
        sys.stdin.readline()
        if "raise" in wishes:
            raise RuntimeError("and nobody calls stop")
        return
    rig.sign(roll, "program")
    run.result()


if __name__ == "__main__":
    main()
