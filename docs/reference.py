"""Docs: the reference pages that the code itself can write. Run: python docs/reference.py

``reference/api.md`` from the public classes' docstrings and fields, ``reference/cli.md`` from the option table,
``reference/json.md`` and ``reference/events.schema.json`` from the events.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec
from prose import (
    DOCS,
    cell,
    docstring,
    field_docs,
    generated,
    lead,
    member_docs,
    section,
    signature,
    table,
    write,
)

import zlaunch
from zlaunch import errors, events, launcher, log_handling, model, result
from zlaunch.cli import help as cli_help
from zlaunch.cli import options
from zlaunch.integrations import argparse as integration
from zlaunch.view import jsonlines
from zlaunch.view.settings import ViewName

_ALIASES = {
    "Where": launcher.Where,
    "Workers": launcher.Workers,
    "Backend": launcher.Backend,
    "StartMethod": model.StartMethod,
    "ViewName": ViewName,
}


def pages() -> dict[Path, str]:
    """Every page, by its path."""
    folder = DOCS / "reference"
    return {
        folder / "api.md": api(),
        folder / "cli.md": cli(),
        folder / "json.md": json_page(),
        folder / "events.schema.json": json.dumps(jsonlines.schema(), indent=2) + "\n",
    }


# --- the Python API -------------------------------------------------------------------------------------------------


def api() -> str:
    """``reference/api.md``."""
    parts = [
        generated("reference.py") + "# The Python API\n",
        "`import zlaunch` loads neither torch nor zmq; what a name needs is imported when the name is first used.\n",
        _launcher(),
        _class(result.LaunchResult, ("rank", "index"), "A `LaunchResult` also has `len`, iteration and slices."),
        _class(result.Run, ("result", "exception", "done", "cancel", "status", "add_done_callback", "exit_status")),
        _fate(),
        _errors(),
        _log_handling(),
        _argparse(),
    ]
    return "\n".join(parts)


def _launcher() -> str:
    meanings = section(launcher.Launcher, "Attributes")
    rows = []
    for field in dataclasses.fields(launcher.Launcher):
        if field.init:
            name, said = f"`{field.name}`", cell(f"`{_type(str(field.type))}`")
            rows.append((name, said, f"`{_default(field)}`", cell(meanings[field.name])))
    head = "## `Launcher`\n\n" + lead(launcher.Launcher)
    methods = (
        ("Steps", ("run", "submit", "run_script", "run_module", "run_command")),
        ("Steps without waiting", ("submit_script", "submit_module", "submit_command")),
        ("Agents that stay", ("start", "stop", "on")),
        ("The rest", ("set_logging_handlers", "plan")),
    )
    text = f"{head}\n\n" + table(("field", "type", "default", "meaning"), rows)
    text += (
        "\n`DEFAULT_ENV_VARS_FOR_COPY` is "
        + ", ".join(f"`{pattern}`" for pattern in zlaunch.DEFAULT_ENV_VARS_FOR_COPY)
        + ".\n"
    )
    for title, names in methods:
        text += f"\n### {title}\n\n" + "\n".join(_method(launcher.Launcher, name) for name in names)
    return text


def _type(words: str) -> str:
    for alias, literal in _ALIASES.items():
        values = " | ".join(f'"{value}"' for value in get_args(literal))
        words = re.sub(rf"\b{alias}\b", values, words)
    return re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | "), words).replace("'", '"')


def _default(field: dataclasses.Field[Any]) -> str:
    if field.name == "copy_env_vars":
        return "DEFAULT_ENV_VARS_FOR_COPY"
    return repr(field.default)


def _method(cls: type, name: str) -> str:
    function = inspect.getattr_static(cls, name)
    return f"#### `{signature(function)}`\n\n{docstring(function)}\n"


def _class(cls: type, methods: tuple[str, ...], more: str = "") -> str:
    text = f"## `{cls.__name__}`\n\n{docstring(cls)}\n"
    text += f"\n{more}\n" if more else ""
    return text + "\n" + "\n".join(_method(cls, name) for name in methods)


def _fate() -> str:
    text = f"## `Fate`\n\n{docstring(model.Fate)} `failures` of an error is a list of these.\n\n"
    text += _fields(model.Fate)
    kinds = member_docs(model.FateKind)
    text += "\n`kind` is one of\n\n" + "\n".join(f"- `{kind}`: {says}" for kind, says in kinds.items()) + "\n"
    for name in ("ok", "status"):
        text += f"\n`{name}`: {docstring(inspect.getattr_static(model.Fate, name))}\n"
    return text


def _fields(cls: type[msgspec.Struct]) -> str:
    docs = field_docs(cls)
    rows = [(f"`{name}`", cell(f"`{said}`"), cell(docs.get(name, ""))) for name, said in _annotations(cls).items()]
    return table(("field", "type", "meaning"), rows)


def _annotations(cls: type) -> dict[str, str]:
    return {name: str(said) for name, said in cls.__annotations__.items()}


def _errors() -> str:
    text = "## Errors\n\n" + lead(errors) + "\n"
    text = text.replace("Level 1: what", "What")
    known: list[type] = [
        errors.RemoteTraceback,
        errors.ZlaunchError,
        errors.WorkerFailedError,
        errors.SerializationError,
        errors.AgentFailedError,
        errors.LaunchError,
        errors.TimeLimitExceeded,
        errors.RunCancelled,
    ]
    for cls in known:
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        text += f"\n### `{cls.__name__}({bases})`\n\n{docstring(cls)}\n"
    return text


def _log_handling() -> str:
    text = "## `zlaunch.log_handling`\n\n" + lead(log_handling).replace("Level 5: l", "L") + "\n"
    for name in log_handling.__all__:
        thing = getattr(log_handling, name)
        title = name if inspect.isclass(thing) else signature(thing)
        text += f"\n### `{title}`\n\n{docstring(thing)}\n"
    return text


def _argparse() -> str:
    text = "## `zlaunch.integrations.argparse`\n"
    for function in (integration.add_zlaunch_arguments, integration.launcher_from_args):
        text += f"\n### `{signature(function)}`\n\n{docstring(function)}\n"
    return text


# --- the command line -----------------------------------------------------------------------------------------------


def cli() -> str:
    """``reference/cli.md``."""
    text = generated("reference.py") + "# The command line\n\n"
    text += table(("command", "what it does"), [(f"`zlaunch {name}`", cell(says)) for name, says in cli_help._COMMANDS])
    text += (
        f"\n`python -m zlaunch` is the same program.\n\n## `zlaunch run`\n\n`{cli_help._USAGE}`\n\n{cli_help._RUN}\n"
    )
    text += _CLI_NOTES
    for title, group in options.GROUPS:
        rows = [_option(option) for option in group]
        text += f"\n### {title[0].upper()}{title[1:]}\n\n" + table(("option", "meaning"), rows)
    names = ", ".join(f"`{name}`" for name in options.NOT_NEEDED)
    text += (
        f"\n### Accepted and not needed\n\n{names} and every `--rdzv-…`, each with its value: torchrun needs them, "
        "zlaunch knows by itself. A note on stderr says that they were left aside.\n"
    )
    text += "\n### Examples\n\n```console\n"
    text += "".join(f"$ {command}    # {says}\n" for command, says in cli_help._EXAMPLES)
    return text + "```\n\nSee also [exit statuses](exit-status.md) and [files](files.md).\n"


_CLI_NOTES = """
- An option's value is the next word or follows `=`: `--grace 5`, `--grace=5`; one letter may have it joined (`-n4`).
- Long options may be written with `_` for `-`, as torchrun's are.
- An option that takes several `K=V` ends at the first word that is not one.
- Where an option that is not marked as repeatable is given twice, the last one counts.
- What zlaunch itself says goes to stderr. stdout has the ranks' lines, or the answer (`--dry-run`, `info`, json).
"""


def _option(option: options.Option) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in option.names)
    says = cell(option.help)
    if option.choices:
        says += "; one of " + ", ".join(f"`{choice}`" for choice in option.choices)
    return f"{names} {cell(option.metavar)}".rstrip(), says


# --- events as JSON -------------------------------------------------------------------------------------------------


def json_page() -> str:
    """``reference/json.md``."""
    text = generated("reference.py") + "# Events as JSON\n\n" + _JSON_LEAD
    for event in get_args(events.Event):
        text += f"\n## `{event.__struct_config__.tag}`\n\n"
        text += f"{jsonlines.OUTPUT if event is events.Output else docstring(event)}\n\n"
        text += table(("field", "type", "meaning"), _json_rows(event))
    text += "\n## The values within\n"
    for value in _VALUES:
        text += f"\n### {value.__name__}\n\n{docstring(value)}\n\n"
        text += table(("field", "type", "meaning"), _json_rows(value))
    text += "\n### The kinds of a fate\n\n"
    kinds = [(f"`{kind}`", cell(says)) for kind, says in member_docs(model.FateKind).items()]
    text += table(("kind", "meaning"), kinds)
    return text


_JSON_LEAD = f"""\
`zlaunch run --view json` and `Launcher(view="json")` write one JSON object per line to stdout, for programs. What
zlaunch has to say to people still goes to stderr. All ranks are told of, whatever `--ranks` says.

Every object has `v`, the version of this format (`{jsonlines.VERSION}`), `event`, and `at`: seconds on the supervisor's
monotonic clock, for differences only; `run-started` tells which wall-clock time that is. The version rises with every
change over which a reader would stumble. New events and new fields come without it: readers should pass over what they
do not know. A field that is not in a line has the value that it has where there is nothing to tell: null, 0, false, or
empty.

[events.schema.json](events.schema.json) is the same as a JSON Schema, for validators and generators of code. In Python,
`zlaunch.view.jsonlines.read_line` makes the event's object of a line again.

What the live view shows can be rebuilt from the lines, in their order:

- `run-started` has the hosts and how many ranks each has, numbered through in the order of the hosts. A rank has a
  process from its `rank-started` on, and has ended with its `rank-ended`. Another `run-started` of the same `run`, with
  `restart` risen, begins again: all its ranks are new.
- `usage` tells every few seconds what the ranks of a host use; of a run over more than 200 hosts, less often. A rank
  that ends within a second is never measured.
- A rank's last line is its last `output` or `redrawn`, or the message of its last `record`.
- All that a rank printed comes before its `rank-ended`, and every `rank-ended` before `run-ended`. That has all fates
  again, and those of ranks that were never started, which have no `rank-ended`.

```console
$ zlaunch run -n 8 --view json train.py | jq -r 'select(.event == "rank-ended") | "\\(.fate.rank) \\(.fate.kind)"'
```
"""


def _values(structs: Iterable[type[msgspec.Struct]]) -> dict[str, type[msgspec.Struct]]:
    """The structs of the model within these, and within those."""
    found: dict[str, type[msgspec.Struct]] = {}
    for struct in structs:
        for said in _annotations(struct).values():
            names = [getattr(model, word, None) for word in re.findall(r"\w+", said)]
            inner = [it for it in names if inspect.isclass(it) and issubclass(it, msgspec.Struct)]
            found |= {it.__name__: it for it in inner} | _values(inner)
    return found


_VALUES = tuple(_values(get_args(events.Event)).values())
_OUTPUT_ROWS = [
    ("`text`", "string", "the line without its end; bytes that are not UTF-8 are replaced"),
    ("`piece`", "boolean", "true for all parts but the last of a line of over 16 MiB; else left out"),
]
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_WORDS: dict[str, tuple[object, ...]] = {
    "Outcome": get_args(events.Outcome),
    "Level": get_args(events.Level),
    "StreamName": get_args(model.StreamName),
    "FateKind": tuple(kind.value for kind in model.FateKind),
}


def _json_rows(struct: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    docs = field_docs(struct)
    event = struct in get_args(events.Event)
    hidden = {*jsonlines._HIDDEN, *(["at"] if event else []), *(["data", "piece"] if struct is events.Output else [])}
    rows: list[tuple[str, ...]] = [
        (f"`{name}`", _json_type(said), cell(docs.get(name, "")))
        for name, said in _annotations(struct).items()
        if name not in hidden
    ]
    return rows + (_OUTPUT_ROWS if struct is events.Output else [])


def _json_type(said: str) -> str:
    """An annotation in JSON's words."""
    if said.endswith(" | None"):
        return f"{_json_type(said.removesuffix(' | None'))} or null"
    if several := re.fullmatch(r"tuple\[(.+), \.\.\.\]", said):
        return f"array of {_json_type(several[1])}"
    if said.startswith("dict["):
        return "object"
    if said in _PLAIN:
        return _PLAIN[said]
    if said in _WORDS:
        return ", ".join(f'`"{word}"`' for word in _WORDS[said])
    if said in {value.__name__ for value in _VALUES}:
        return f"[{said}](#{said.lower()})"
    raise ValueError(f"what is {said} in JSON?")


if __name__ == "__main__":
    write(pages())
