"""Level 4, worker: a function step. The letter is opened, the process group made, the function called, and its result
told before anything that may fail at the end does."""

from __future__ import annotations

import sys
from contextlib import suppress

from ..errors import SerializationError
from ..model import Seat, Step
from ..protocol import letter
from .ending import Ending, Exit, Interrupted, describe, exit_status, show, strip, undisturbed
from .group import abandon_group, close_group, open_group, tell_who_has_left
from .mpi import meet
from .records import capture_records
from .voice import Voice


def run_function(step: Step, seat: Seat, frames: list[memoryview], voice: Voice, place: int) -> Ending:
    """Call the function of a step, and give its result, or what it raised, as the rank's answer.

    ``place`` is the memfd in which the ranks of one host find each other.
    """
    if step.log_token:
        capture_records(step.log_token, step.log_level)
    try:
        function, args, kwargs = letter.load(frames)
    except SerializationError as error:
        return _unreadable(error, voice)
    except BaseException as error:
        return _raised(error, voice)
    frames.clear()
    group = None
    try:
        if step.rendezvous == "mpi":
            seat = meet(seat)
        group = open_group(step, seat, place)
        result = function(*args, **kwargs)
    except SystemExit as error:
        ending = exit_status(error)
        if ending.code:
            return _failed(ending, voice)
        result = None
    except KeyboardInterrupt as error:
        strip(error)
        show(error)
        return _failed(Interrupted(), voice)
    except BaseException as error:
        if voice.ours:
            tell_who_has_left(error, group)
        return _failed(_raised(error, voice), voice)
    if not voice.ours:  # a child that the function forked has come back from it in its parent's name
        return Exit(0)
    ending = _give(result, seat, voice)
    del function, args, kwargs, result
    close_group(group)
    return ending


def _failed(ending: Ending, voice: Voice) -> Ending:
    if voice.ours:  # a forked child's sockets are its parent's
        abandon_group()
    return ending


def _give(result: object, seat: Seat, voice: Voice) -> Exit:
    try:
        voice.say("value", payload=letter.dump(result, f"the result of rank {seat.rank}"))
    except SerializationError as error:
        with undisturbed():
            voice.say("unpicklable", str(error))
            _print(str(error))
        return Exit(1)
    except OSError as error:
        text = f"the result of rank {seat.rank} could not be handed over: {error}"
        with undisturbed():
            voice.say("unpicklable", text)
            _print(text)
        return Exit(1)
    return Exit(0)


def _raised(error: BaseException, voice: Voice) -> Exit:
    strip(error)
    with undisturbed():
        payload = None
        if voice.ours:
            try:
                payload = letter.dump(error, "the exception")
            except SerializationError as reason:
                with suppress(Exception):
                    error.add_note(f"({reason}; so it is a WorkerFailedError where the run was started)")
        text, symptom = describe(error)
        if voice.ours:
            try:
                voice.say("exception", text, symptom=symptom, payload=payload)
            except OSError:
                voice.say("exception", text, symptom=symptom)
        show(error)
    return Exit(1)


def _unreadable(error: SerializationError, voice: Voice) -> Exit:
    cause = error.__cause__ or error
    strip(cause)
    text = f"the function and its arguments {error}\n\n{describe(cause)[0]}"
    with undisturbed():
        voice.say("unpicklable", text)
        _print(text)
    return Exit(1)


def _print(text: str) -> None:
    with suppress(Exception):
        sys.stdout.flush()
        print(text, file=sys.stderr)  # noqa: T201 - the rank's own stderr
