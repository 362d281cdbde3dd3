"""User code that is only type-checked, as its author's mypy would see the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_user_code_keeps_its_types(tmp_path: Path) -> None:
    """A wrong line without an error fails as well: by the ignore that has nothing to ignore."""
    done = check("tests/typing/api.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_can_fail(tmp_path: Path) -> None:
    """A line that is wrong is found: the package's types are read, not taken for Any."""
    user = tmp_path / "user.py"
    user.write_text("import zlaunch\nwords: list[str] = list(zlaunch.Launcher().run(lambda: 3))\n")
    done = check(str(user))
    assert done.returncode == 1
    assert "user.py:2: error" in done.stdout
