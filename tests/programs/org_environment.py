"""Environment variables: patterns beside the defaults, a dict, a file; the later wins."""

import os
from pathlib import Path

import zlaunch as torchrunx

NAMES = ("HF_HOME", "WANDB_PROJECT", "FROM_DICT", "FROM_FILE", "BOTH", "QUOTED", "EXPANDED")


def look() -> dict[str, str | None]:
    """What a rank finds."""
    for name in ("LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert os.environ[name]
    return {name: os.environ.get(name) for name in NAMES}


if __name__ == "__main__":
    os.environ["HF_HOME"] = "/models"
    os.environ["WANDB_PROJECT"] = "digits"
    Path("run.env").write_text(
        "# a comment\n\nexport FROM_FILE=file\nBOTH=file\nQUOTED='two words'\nEXPANDED=\"$HF_HOME/hub\"\n"
    )
    launcher = torchrunx.Launcher(
        hostnames=["localhost"],
        workers_per_host=2,
        backend=None,
        copy_env_vars=(*torchrunx.DEFAULT_ENV_VARS_FOR_COPY, "HF_HOME", "WANDB_*"),
        extra_env_vars={"FROM_DICT": "dict", "BOTH": "dict"},
        env_file="run.env",
    )
    first, second = launcher.run(look)
    assert first == second
    for name, value in first.items():
        print(f"{name}={value}")
    assert "FROM_DICT" not in os.environ
