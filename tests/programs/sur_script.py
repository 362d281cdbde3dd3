"""A rank of ``zlaunch run``: says who is there, leaves a daemon, and sleeps."""

import os
import sys

import survival_rig as rig

if os.environ["RANK"] == "0":
    rig.daemonise(sys.argv[1])
rig.sign_rank(sys.argv[1])
rig.sleep_for_ever()
