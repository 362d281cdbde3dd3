"""Level 6: a command line's words, split into options, COMMAND and ARGS. Pure; knows only the option table.

Options end at COMMAND, the first word that is neither an option nor an option's value: what follows belongs
to the user's program, untouched, whatever it looks like. argparse cannot promise that (it sorts all words
into options and positionals before it looks at their order), hence these few lines of our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..systems.nearest import nearest
from . import options
from .options import Option, Takes

_PAIR = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
_NUMBER = re.compile(r"-\.?\d")


class UsageError(Exception):
    """A command line that cannot be meant: exit status 2. ``hint`` says what to do, where we know."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)


class Given(NamedTuple):
    """One value of an option, with the option as the user spelled it."""

    spelling: str
    text: str


class Words(NamedTuple):
    """A command line, sorted but not yet understood."""

    given: dict[str, list[Given]]
    """The values of each option, by its key and in the order in which they came; ``""`` for a flag."""
    command: tuple[str, ...]
    """COMMAND and ARGS."""
    not_needed: tuple[str, ...]
    """torchrun's options that have no meaning here."""


def split(words: Sequence[str]) -> Words:
    """Sort the words after ``zlaunch run``.

    Raises:
        UsageError: for an option that there is not, or one without its value.
    """
    reader = _Reader(words)
    reader.read()
    return Words(reader.given, tuple(reader.words[reader.at :]), tuple(reader.not_needed))


class _Reader:
    """Goes through the words once, from left to right."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.at = 0
        self.given: dict[str, list[Given]] = {}
        self.not_needed: list[str] = []

    def read(self) -> None:
        while self.at < len(self.words):
            word = self.words[self.at]
            if word == "--":
                self.at += 1
                return
            if not word.startswith("-") or word == "-":
                return
            self.at += 1
            if word.startswith("--"):
                self._long(word)
            else:
                self._short(word)

    def _long(self, word: str) -> None:
        name, equals, text = word.partition("=")
        plain = options.canonical(name)
        if plain in options.NOT_NEEDED or plain.startswith("--rdzv-"):
            self.not_needed.append(name)
            if not equals:
                self._value(name)
            return
        option = options.find(name)
        if option is None:
            raise _unknown(name)
        if option.takes is Takes.NOTHING:
            if equals:
                raise UsageError(f"{name} takes no value")
            self._keep(option, name, "")
        else:
            self._take(option, name, text if equals else None)

    def _short(self, word: str) -> None:
        """``-v``, ``-n 4``, ``-n4``, ``-vn4``."""
        for place, letter in enumerate(word[1:], start=2):
            name = f"-{letter}"
            option = options.find(name)
            if option is None:
                raise _unknown(name if place == 2 else word)
            if option.takes is not Takes.NOTHING:
                rest = word[place:]
                self._take(option, name, rest.removeprefix("=") if rest else None)
                return
            self._keep(option, name, "")

    def _take(self, option: Option, name: str, text: str | None) -> None:
        if text is None and option.takes is Takes.MAYBE:
            following = self.words[self.at : self.at + 1]
            text = self._value(name) if following and not following[0].startswith("-") else ""
        if text is None:
            text = self._value(name, dashed=option.takes is Takes.PAIRS)
        self._keep(option, name, text)
        if option.takes is Takes.PAIRS:
            while self.at < len(self.words) and _PAIR.match(self.words[self.at]):
                self._keep(option, name, self.words[self.at])
                self.at += 1

    def _value(self, name: str, dashed: bool = False) -> str:
        word = self.words[self.at] if self.at < len(self.words) else None
        if word is None or word == "--":
            raise UsageError(f"{name} needs a value")
        if word.startswith("-") and word != "-" and not dashed and not _NUMBER.match(word):
            raise UsageError(f"{name} needs a value", f"one that begins with - is written {name}={word}")
        self.at += 1
        return word

    def _keep(self, option: Option, name: str, text: str) -> None:
        if option.choices and text not in option.choices:
            raise _no_such_choice(option, name, text)
        given = Given(name, text)
        if option.repeated:
            self.given.setdefault(option.key, []).append(given)
        else:
            self.given[option.key] = [given]


def _unknown(name: str) -> UsageError:
    plain = options.canonical(name)
    known = [spelling for option in options.OPTIONS for spelling in option.names if spelling.startswith("--")]
    return UsageError(
        f"there is no option {name}",
        options.TORCHRUN.get(plain)
        or nearest(plain, known)
        or "zlaunch run --help lists them; an option of your own program comes after it",
    )


def _no_such_choice(option: Option, name: str, text: str) -> UsageError:
    there_are = f"there {'is' if len(option.choices) == 1 else 'are'} {', '.join(option.choices)}"
    return UsageError(f"{name}: {text!r} is not a choice", nearest(text, option.choices) or there_are)
