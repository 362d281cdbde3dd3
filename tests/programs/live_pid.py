"""A script under another one, that leaves its rank's pid: ``live_pid.py FOLDER SCRIPT ARGS...``."""

import os
import runpy
import sys
from pathlib import Path

folder, *sys.argv = sys.argv[1:]
part = Path(folder, f"{os.environ['RANK']}.part")
part.write_text(str(os.getpid()))
part.rename(Path(folder, f"pid.{os.environ['RANK']}"))
runpy.run_path(sys.argv[0], run_name="__main__")
