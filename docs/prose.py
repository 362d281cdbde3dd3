"""Docs: what the generators share. Docstrings and signatures of the code become Markdown; nothing is invented here."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))  # the zlaunch beside these docs is the one that they describe

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$")
_ENTRY = re.compile(r"^ {4}(\w[\w., ]*?): (.*)$")


def generated(by: str) -> str:
    """The first line of a generated page."""
    return f"<!-- Written from the code. To change this page, change the code, then run: python docs/{by} -->\n"


def code(text: str) -> str:
    """reStructuredText's double backquotes as Markdown's single ones."""
    return text.replace("``", "`")


def cell(text: str) -> str:
    """For a table: one line, and no bar that would end the cell."""
    return " ".join(code(text).split()).replace("|", "\\|")


def docstring(thing: object) -> str:
    """A docstring as Markdown: its paragraphs, and its sections as lists."""
    text = inspect.getdoc(thing)
    if not text:
        raise ValueError(f"{thing!r} has no docstring")
    blocks = [_block(block) for block in text.split("\n\n")]
    return code("\n\n".join(blocks))


def _block(block: str) -> str:
    head, _, rest = block.partition("\n")
    if block.startswith("    ") or head.endswith("::"):
        return f"```python\n{textwrap.dedent(block)}\n```"
    if not _SECTION.match(head):
        return block
    return f"*{head}*\n\n" + "\n".join(f"- `{name}`: {says}" for name, says in _entries(rest).items())


def _entries(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := _ENTRY.match(line):
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def section(thing: object, title: str) -> dict[str, str]:
    """The entries of a docstring's section: name and meaning. ``a, b: words`` is one entry for each."""
    text = inspect.getdoc(thing) or ""
    for block in text.split("\n\n"):
        head, _, rest = block.partition("\n")
        if head == f"{title}:":
            return {name.strip(): says for names, says in _entries(rest).items() for name in names.split(",")}
    return {}


def lead(thing: object) -> str:
    """A docstring without its sections."""
    text = inspect.getdoc(thing) or ""
    blocks = [block for block in text.split("\n\n") if not _SECTION.match(block.partition("\n")[0])]
    return code("\n\n".join(map(_block, blocks)))


def signature(function: Callable[..., Any], name: str = "") -> str:
    """``run(func, /, *args, **kwargs) -> LaunchResult[R]``, with the annotations as they are written in the code."""
    shape = inspect.signature(function)
    words: list[str] = []
    kinds = [parameter.kind for parameter in shape.parameters.values()]
    for place, parameter in enumerate(shape.parameters.values()):
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.VAR_POSITIONAL not in kinds and "*" not in words:
            words.append("*")
        words.append(_parameter(parameter))
        last = place + 1 == len(kinds) or kinds[place + 1] is not parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.POSITIONAL_ONLY and last:
            words.append("/")
    returns = "" if shape.return_annotation is shape.empty else f" -> {_annotation(shape.return_annotation)}"
    return f"{name or function.__name__}({', '.join(words)}){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    said = _annotation(parameter.annotation)
    if said.startswith(("P.", "Any")):
        said = ""
    text = f"{stars}{parameter.name}" + (f": {said}" if said else "")
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {parameter.default!r}" if said else f"{text}={parameter.default!r}"


def _annotation(value: object) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def field_docs(cls: type) -> dict[str, str]:
    """The strings that stand below a class's annotated fields; empty for a field that has none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            found[name] = ""
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = inspect.cleandoc(str(node.value.value))
        else:
            name = ""
    return found


def member_docs(cls: type) -> dict[str, str]:
    """The strings that stand below an enumeration's members."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = str(ast.literal_eval(node.value))
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = inspect.cleandoc(str(node.value.value))
    return found


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(pages: Mapping[Path, str]) -> None:
    """Write generated pages, and say which."""
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))
