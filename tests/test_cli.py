"""The command ``zlaunch`` around its runs: help, version, info, completion, and what is not a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zlaunch._version import __version__
from zlaunch.cli.help import Paint, run_help
from zlaunch.cli.main import main
from zlaunch.cli.options import OPTIONS

HEAVY = {"torch", "zmq", "rich", "msgspec", "argparse", "dataclasses"}


class Terminal:
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_alone_it_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "commands" in printed.err


@pytest.mark.parametrize(
    "words",
    [["--help"], ["-h"], ["run", "--help"], ["run", "-h"], ["info", "-h"], ["completion", "-h"], ["help", "run"]],
)
def test_help_is_an_answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "usage" in printed.out
    assert printed.err == ""
    assert "\x1b" not in printed.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["run", "--version"]) == 0
    assert capsys.readouterr().out == f"zlaunch {__version__}\n" * 2


def test_every_option_is_in_the_help_and_no_line_is_too_wide() -> None:
    text = run_help(Paint(sys.__stdout__), width=80)  # type: ignore[arg-type]
    for option in OPTIONS:
        for name in option.names:
            assert name in text, name
    assert max(map(len, text.splitlines())) <= 80


def test_colour_is_for_terminals_whose_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[1m" in run_help(Paint(terminal))  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run_help(Paint(terminal))  # type: ignore[arg-type]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in run_help(Paint(terminal))  # type: ignore[arg-type]


def test_the_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from zlaunch.cli.main import main; main(['run', '--help']);"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu", "x"], "did you mean run?"),
        (["train.py"], "did you mean zlaunch run train.py?"),
        (["-n", "4"], "options of a run come after run"),
        (["--verison"], "did you mean --version?"),
        (["version"], "did you mean --version?"),
        (["info", "--yaml"], "zlaunch info [--json]"),
        (["completion", "fish"], "bash, zsh"),
        (["run", "--veiw", "x"], "did you mean --view?"),
        (["run", "-n", "0", "ls"], "at least 1"),
        (["run"], "there is no COMMAND"),
    ],
)
def test_a_wrong_command_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("zlaunch: error: ")
    assert said in printed.err


def test_in_a_folder_that_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["run", "../train.py"]) == 2
    assert "has been removed" in capsys.readouterr().err


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cores"] >= 1
    assert answer["versions"]["zlaunch"] == __version__
    assert answer["versions"]["torch"]
    assert isinstance(answer["gpus"], list)


def test_info_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert os.uname().nodename in text
    assert "scheduler" in text


def test_an_answer_whose_reader_has_left_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "zlaunch", "run", "--help"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("zlaunch ru", {"run"}),
        ("zlaunch run --vi", {"--view"}),
        ("zlaunch run --view pl", {"plain"}),
        ("zlaunch run -n 4 --start-method s", {"spawn"}),
        ("zlaunch run train.py --vi", set()),
        ("zlaunch run --view = pl", {"plain"}),
        ("zlaunch run --grace = 5 --vi", {"--view"}),
        ("zlaunch run --hosts a : 2,b : 2 --vi", {"--view"}),
        ("zlaunch run --env A = 1 B = 2 --vi", {"--view"}),
        ("zlaunch run --env A=1 B=2 --vi", {"--view"}),  # as zsh has it
        ("zlaunch run -x --ntasks = 8 -l --vi", {"--view"}),
        ("zlaunch run --env A = 1 train.py --vi", set()),
        ("zlaunch attach --view li", {"live"}),
        ("zlaunch help at", {"attach"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], tmp_path: Path) -> None:
    words = typed.split(" ")
    array = " ".join(f"'{word}'" for word in words)
    lines = (
        f"{sys.executable} -m zlaunch completion bash > s && . ./s",
        f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _zlaunch; echo ${{COMPREPLY[@]}}",
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered
