"""Docs: ``explanation/states.md``, drawn from the tables of ``zlaunch/tables.py``, and the words of the live view from
``zlaunch/view/board.py``. Run: python docs/states.py

The arrows come from the tables, the sentences are here; a state without a sentence, or a sentence without a state, is
an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from prose import DOCS, code, generated, table, write

from zlaunch import tables
from zlaunch.view.board import LOOKS


class Chart(NamedTuple):
    """One machine: who keeps it, its table, its first state, and what each state means."""

    title: str
    about: str
    table: Mapping[Any, StrEnum]
    first: StrEnum
    sentences: Mapping[str, str]


CHARTS = (
    Chart(
        "A run",
        "Kept by the supervisor, one per step that was submitted and has not ended. A restart takes the same run back "
        "to the queue, with its attempt risen.",
        tables.RUN_TABLE,
        tables.RunState.QUEUED,
        {
            "queued": "Some of its hosts are busy with an earlier step, or their agents have not connected yet.",
            "reserving": "Its hosts are its own. The first of them is choosing the port that rank 0 will listen on.",
            "starting": "The hosts have the letter and the seats; not every rank has a process yet.",
            "running": "Every rank has, or had, its process.",
            "failing": "A rank has failed. Fates are collected until the cause is known; nothing is stopped yet.",
            "stopping": "The hosts have been told to end the ranks: after a failure, a cancellation, or a time limit.",
            "ended": "Nothing of it is alive but reported survivors; all that it printed and answered is here.",
        },
    ),
    Chart(
        "An agent",
        "Kept by the supervisor, one per host. There is no way back from *lost*: a broken connection is a lost host.",
        tables.AGENT_TABLE,
        tables.AgentState.LAUNCHED,
        {
            "launched": "Its process was started, and its first message has not come.",
            "connected": "Both its channels are up and it has said what its host has.",
            "leaving": "It was told to go, and ends what it holds.",
            "lost": "It is gone without having been told to go; every step that needs its host fails.",
            "gone": "It left as it was told to.",
        },
    ),
    Chart(
        "A step on one host",
        "Kept by the host's agent, which has one step at a time.",
        tables.STEP_TABLE,
        tables.StepState.PREPARING,
        {
            "preparing": "The letter is on its way, or the fork template still imports.",
            "running": "Its ranks have been forked; some have not ended.",
            "sweeping": "All ranks have ended; whatever they left behind is found and killed.",
            "closed": "Nothing of it is alive here but reported survivors; the supervisor is told.",
        },
    ),
    Chart(
        "A rank",
        "Kept by its host's agent.",
        tables.RANK_TABLE,
        tables.RankState.WAITING,
        {
            "waiting": "It has a seat, and the template or the letter is not there yet.",
            "forking": "The template was asked for it.",
            "running": "Its process is there.",
            "answered": "It has given its result or its exception, and its process still has to end.",
            "draining": "Its process is dead; what its pipes still hold is forwarded before its fate is told.",
            "ended": "Its fate is known and told.",
        },
    ),
)

_INTRO = """\
# States

The supervisor and the agents are state machines without I/O. What can happen to a run, an agent, a step and a rank is
written down in four literal tables, [`zlaunch/tables.py`](../../zlaunch/tables.py), and they move through nothing
else: a move that is not in its table raises `IllegalTransition` and changes nothing. The diagrams below are drawn from
those tables; each arrow bears the word by which the code takes it.

`Run.status()` gives a run's state in these words until it has ended, and its outcome afterwards.
"""

_SEEN = """\
## A rank, as the live view shows it

The table of `--view live` knows what the launcher has been told, and no more: of a rank that has ended the kind of its
fate, as `Fate.kind` has it in Python; of one that has not, whether there is a process and what it does. A word, and a
glyph in the strip of a host: the colour only repeats them. Where not all have room, those further up come first.

"""


def pages() -> dict[Path, str]:
    """The page, by its path."""
    text = generated("states.py") + _INTRO + "".join(f"\n{draw(chart)}" for chart in CHARTS) + f"\n{_SEEN}{seen()}"
    return {DOCS / "explanation" / "states.md": text}


def seen() -> str:
    """The words of the live view."""
    looks = sorted(LOOKS.items(), key=lambda item: item[1].concern)
    rows = [(f"*{state.value}*", f"`{look.glyph}`", f"`{look.ascii}`", code(look.meaning)) for state, look in looks]
    return table(("word", "glyph", "without UTF-8", "meaning"), rows)


def draw(chart: Chart) -> str:
    """One section: the diagram, and a sentence per state."""
    states = list(type(chart.first))
    wanted, given = {str(state) for state in states}, set(chart.sentences)
    if wanted != given:
        raise ValueError(f"{chart.title}: states and sentences differ in {', '.join(sorted(wanted ^ given))}")
    leaves = {source for source, _ in chart.table}
    lines = ["stateDiagram-v2", f"    [*] --> {chart.first}"]
    lines += [f"    {source} --> {target}: {word}" for (source, word), target in chart.table.items()]
    lines += [f"    {state} --> [*]" for state in states if state not in leaves]
    diagram = "\n".join(lines)
    sentences = "\n".join(f"- *{state}*: {chart.sentences[state]}" for state in states)
    return f"## {chart.title}\n\n{chart.about}\n\n```mermaid\n{diagram}\n```\n\n{sentences}\n"


if __name__ == "__main__":
    write(pages())
