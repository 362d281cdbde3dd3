"""The words of ``zlaunch run``: where options end, how they are spelled, what is refused."""

import shlex

import pytest

from zlaunch.cli.grammar import UsageError, Words, split


def values(words: Words, key: str) -> list[str]:
    return [given.text for given in words.given.get(key, [])]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("train.py", "train.py"),
        ("-n 4 train.py -n 8 --view json", "train.py -n 8 --view json"),
        ("-n 4 -- train.py -- -x", "train.py -- -x"),
        ("-- -strange-name", "-strange-name"),
        ("-m pkg.train --help", "pkg.train --help"),
        ("--env A=1 B=2 train.py C=3", "train.py C=3"),
        ("--standalone --nproc_per_node=2 train.py --lr 1", "train.py --lr 1"),
        ("-vn2 ./a.out -v", "./a.out -v"),
        ("- a", "- a"),
        ("", ""),
    ],
)
def test_options_end_at_the_command(line: str, command: str) -> None:
    assert split(line.split()).command == tuple(command.split())


@pytest.mark.parametrize(
    "line",
    [
        "-n 4 x",
        "-n4 x",
        "-n=4 x",
        "--procs-per-node 4 x",
        "--nproc_per_node=4 x",
        "--nproc-per-node 4 x",
        "-un4 x",
    ],
)
def test_spellings_of_one_option(line: str) -> None:
    words = split(line.split())
    assert values(words, "procs-per-node") == ["4"]
    assert words.command == ("x",)


def test_the_last_one_counts_and_env_is_repeated() -> None:
    words = split(["-n", "1", "-n", "2", "--env", "A=1", "--env", "B", "--env", "C=x=y", "D=", "train.py"])
    assert values(words, "procs-per-node") == ["2"]
    assert values(words, "env") == ["A=1", "B", "C=x=y", "D="]


def test_only_the_first_word_of_pairs_may_begin_with_a_dash() -> None:
    words = split(["--env", "-strange", "A=1", "-v", "train.py"])
    assert values(words, "env") == ["-strange", "A=1"]
    assert "verbose" in words.given


def test_what_torchrun_needs_and_we_do_not() -> None:
    words = split(
        [
            "--rdzv_backend=c10d",
            "--rdzv-endpoint",
            "host:29400",
            "--rdzv_id",
            "7",
            "--rdzv_conf",
            "a=1,b=2",
            "--node_rank",
            "0",
            "--master_addr=h",
            "--master-port",
            "1",
            "--nnodes",
            "1",
            "train.py",
        ]
    )
    assert words.command == ("train.py",)
    expected = "rdzv_backend rdzv-endpoint rdzv_id rdzv_conf node_rank master_addr master-port"
    assert words.not_needed == tuple(f"--{name}" for name in expected.split())


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("--veiw plain x", "there is no option --veiw", "--view"),
        ("--nproc_per_nod 2 x", "there is no option --nproc_per_nod", "--nproc-per-node"),
        ("--tee 3 x", "there is no option --tee", "--log-dir"),
        ("--numa_binding=node x", "there is no option --numa_binding", "--bind"),
        ("-k x", "there is no option -k", ""),
        ("-vk x", "there is no option -vk", ""),
        ("-n", "-n needs a value", ""),
        ("-n -- x", "-n needs a value", ""),
        ("--out --err x", "--out needs a value", "--out=--err"),
        ("--local=yes x", "--local takes no value", ""),
        ("--view plian x", "--view: 'plian' is not a choice", "plain"),
        ("--scheduler slrum x", "--scheduler: 'slrum' is not a choice", "did you mean slurm?"),
        ("--hosts --hostfile x", "--hosts needs a value", "--hosts=--hostfile"),
        ("--hostnames a,b x", "there is no option --hostnames", ""),
        ("--bind nama x", "--bind: 'nama' is not a choice", "did you mean numa?"),
    ],
)
def test_what_is_refused(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(line.split())
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_negative_number_is_a_value() -> None:
    assert values(split(["-n", "-4", "x"]), "procs-per-node") == ["-4"]


@pytest.mark.parametrize(
    "line",
    [
        "--local -n 2 test_script.py",
        "-N 1 -n 4 train.py --epochs 100",
        "-r tcp -N 1 -n 4 train.py",
        "--fraction-max-gpu-mem 0.75 -N 1 -n 4 large_model.py",
        "--fraction-max-gpu-mem 0.5 -n 2 shared_gpu_train.py",
        "--unswap-rocr-hip-vis-dev -n 8 torchtitan_train.py",
        "-N 1 -n 2 --gpus-per-proc 4 model_parallel_train.py",
        "--dry-run -N 1 -n 8 train.py --lr 0.001",
        "--save-hostlist -n 8 debug_train.py",
        "--out output.log --err error.log -n 8 train.py",
        "--color-stderr --verbose -N 1 -n 4 debug_train.py",
        "--verbose --save-hostlist --out logs/train_out.log --err logs/train_err.log -N 1 -n 8 train.py",
        "-t 480 -J BERT_finetune -n 8 long_train.py",
        "--hosts a,b:2 --ssh_config f --python py --setup=x --host_timeout 9 -N 2 train.py",
        "--hostfile hosts.txt -n gpu train.py",
    ],
)
def test_command_lines_of_torchrun_hpc_without_a_scheduler(line: str) -> None:
    words = split(line.split())
    assert words.command[0].endswith(".py")
    assert words.not_needed == ()


@pytest.mark.parametrize(
    ("line", "folder", "command"),
    [
        ("-l trial -N 2 train.py", "trial", ("train.py",)),
        ("-l . train.py", ".", ("train.py",)),
        ("-ltrial train.py", "trial", ("train.py",)),
        ("-vl trial train.py", "trial", ("train.py",)),
        ("--launch-dir=trial train.py", "trial", ("train.py",)),
        ("--launch_dir trial train.py", "trial", ("train.py",)),
        ("-l -N 2 train.py", "", ("train.py",)),
        ("-l -- train.py", "", ("train.py",)),
        ("-l train.py", "train.py", ()),  # as the dashes are for
    ],
)
def test_a_launch_directory_may_be_left_to_us(line: str, folder: str, command: tuple[str, ...]) -> None:
    words = split(line.split())
    assert (values(words, "launch-dir"), words.command) == ([folder], command)


def test_what_x_takes() -> None:
    words = split(shlex.split("-x --ntasks=8 NCCL_DEBUG=INFO -x~--no-kill -x --exclusive -x -J=a train.py x=1"))
    assert values(words, "xargs") == ["--ntasks=8", "NCCL_DEBUG=INFO", "~--no-kill", "--exclusive", "-J=a"]
    assert words.command == ("train.py", "x=1")
