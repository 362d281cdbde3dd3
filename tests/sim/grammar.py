"""Strict options: what a command's page lists, and nothing else; no abbreviations, even where the real program allows.

A row of a table is a line of the documented grammar::

    -N --nodes=int          an option with a value of this kind
    -x --exclusive          one without
    --env=str *             may come again; the values are a list
    -l --label[=str]        the value is optional, and then only with ``=``

The name of an option in ``Parsed`` is its last spelling in the row, without dashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Refusal(Exception):
    """The command ends with this message on stderr and this exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


Kind = Callable[[str], Any]
"""Makes the value of an option from its text, or raises ``ValueError`` (whose words are shown)."""


def natural(text: str) -> int:
    """A whole number from 1 on."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise ValueError("must be >= 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError("must be a number")
    return int(text)


def one_of(*words: str) -> Kind:
    """One of these words."""

    def choose(text: str) -> str:
        if text not in words:
            raise ValueError(f"choose from {', '.join(words)}")
        return text

    return choose


KINDS: Mapping[str, Kind] = {"str": str, "int": natural, "whole": whole}


@dataclass(frozen=True)
class _Row:
    name: str
    spellings: tuple[str, ...]
    kind: Kind | None
    optional: bool
    many: bool


@dataclass(frozen=True)
class Parsed:
    """``options`` has those that were given, by name (a list where a row says ``*``); ``rest`` all other words."""

    options: dict[str, Any]
    rest: list[str]

    def __contains__(self, name: str) -> bool:
        return name in self.options

    def get(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


class Grammar:
    """The options of one command.

    Args:
        program: as messages name it.
        rows: as the module says; text with a row per line.
        kinds: of values, besides ``KINDS``.
        status: with which a mistake ends the command.
        gnu: long options have two dashes and take ``--name=value``, short ones may be glued to their value and to each
            other. Otherwise every option is ``-name value``, in two words, as LSF has it.
        mixed: options may follow other words; otherwise the first of these ends the options, as ``--`` always does.
    """

    def __init__(
        self,
        program: str,
        rows: str,
        *,
        kinds: Mapping[str, Kind] | None = None,
        status: int = 2,
        gnu: bool = True,
        mixed: bool = False,
    ) -> None:
        self.program, self.status, self.gnu, self.mixed = program, status, gnu, mixed
        self._kinds = {**KINDS, **(kinds or {})}
        self._rows: dict[str, _Row] = {}
        for line in filter(None, map(str.strip, rows.splitlines())):
            row = self._row(line)
            self._rows.update(dict.fromkeys(row.spellings, row))

    def _row(self, line: str) -> _Row:
        words = line.split()
        many = words[-1] == "*"
        last, _, kind = words[-2 if many else -1].partition("=")
        optional = last.endswith("[")
        last, kind = last.rstrip("["), kind.rstrip("]")
        spellings = (*words[: -2 if many else -1], last)
        return _Row(last.lstrip("-"), spellings, self._kinds[kind] if kind else None, optional, many)

    @property
    def names(self) -> set[str]:
        """All spellings that there are."""
        return set(self._rows)

    def refuse(self, text: str) -> Refusal:
        return Refusal(f"{self.program}: error: {text}", self.status)

    def parse(self, argv: Iterable[str]) -> Parsed:
        """Raises ``Refusal`` for whatever no row says."""
        options: dict[str, Any] = {}
        rest: list[str] = []
        words = list(argv)
        while words:
            word = words.pop(0)
            if word == "--":
                rest += words
                break
            if word == "-" or not word.startswith("-"):
                rest.append(word)
                if self.mixed:
                    continue
                rest += words
                break
            for row, value in self._read(word, words):
                if row.many:
                    options.setdefault(row.name, []).append(value)
                else:
                    options[row.name] = value
        return Parsed(options, rest)

    def _read(self, word: str, words: list[str]) -> list[tuple[_Row, Any]]:
        if not self.gnu or word.startswith("--"):
            spelling, equals, given = word.partition("=") if self.gnu else (word, "", "")
            row = self._find(spelling)
            return [(row, self._value(row, spelling, given if equals else None, words))]
        found = []  # letters, the last of which may have a value
        letters = word[1:]
        while letters:
            spelling, letters = f"-{letters[0]}", letters[1:]
            row = self._find(spelling)
            if row.kind is None:
                found.append((row, True))
                continue
            found.append((row, self._value(row, spelling, letters or None, words)))
            break
        return found

    def _find(self, spelling: str) -> _Row:
        if spelling not in self._rows:
            raise self.refuse(f"unrecognized arguments: {spelling}")
        return self._rows[spelling]

    def _value(self, row: _Row, spelling: str, given: str | None, words: list[str]) -> Any:
        if row.kind is None:
            if given is not None:
                raise self.refuse(f"argument {spelling}: ignored explicit argument {given!r}")
            return True
        if given is None and row.optional:
            return ""
        if given is None:
            if not words or (words[0].startswith("-") and len(words[0]) > 1 and self.gnu):
                raise self.refuse(f"argument {spelling}: expected one argument")
            given = words.pop(0)
        try:
            return row.kind(given)
        except ValueError as error:
            raise self.refuse(f"argument {spelling}: invalid value {given!r}: {error}") from None


def check_single(grammar: Grammar, parsed: Parsed, *groups: Sequence[str]) -> None:
    """Of each of these groups of names at most one may be given."""
    for group in groups:
        given = [name for name in group if name in parsed]
        if len(given) > 1:
            raise grammar.refuse(f"{given[0]} and {given[1]} exclude each other")
