"""A user's modules that lie in a folder which other hosts have not: they travel by value, and what comes of them comes
back as what it is here."""

from __future__ import annotations

import importlib
import sys
import threading

import cloudpickle
import pytest
from worker_rig import Rig

from zlaunch.errors import SerializationError
from zlaunch.protocol import letter
from zlaunch.protocol.local import Ready
from zlaunch.protocol.travel import modules_by_value

HELPERS = """
from __future__ import annotations
import dataclasses, enum, threading
import numpy as np
from zt_project import deep

SCALE = 3
class MyError(Exception):
    def __init__(self, code, *, hint="none"):
        super().__init__(code)
        self.code, self.hint = code, hint
    def __reduce__(self):
        return _rebuild, (self.code, self.hint)
def _rebuild(code, hint):
    return MyError(code, hint=hint)
class Plain(MyError):
    __reduce__ = Exception.__reduce__
class Color(enum.Enum):
    RED = 1
class Base:
    def double(self):
        return 2 * self.value
@dataclasses.dataclass
class Point(Base):
    value: int = 4
    color: Color = Color.RED
    def double(self):
        return super().double() + SCALE
def work(n):
    return deep.layers.depth(n) + SCALE, Point(n).double(), int(np.ones(n).sum())
def make(point):
    assert isinstance(point, Point)
    return Point(point.value + 1), Color.RED, MyError
def fail(n):
    raise MyError(n, hint="look here")
def fail_with_cause():
    try:
        fail(1)
    except MyError as error:
        raise deep.Other("outer") from error
"""
DEEP = """
from . import layers
class Other(Exception):
    pass
"""
LAYERS = """
import zt_helpers
from zt_project import deep
def depth(n):
    assert deep.layers.depth.__name__ == "depth"
    import zt_project.deep.layers as same
    return n if n > 9 else depth(n + zt_helpers.SCALE)
"""
STUCK = "import threading\nlock = threading.Lock()\ndef locked():\n    with lock:\n        return 1\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of the user's with modules and a package that import one another, and its path."""
    (tmp_path / "zt_helpers.py").write_text(HELPERS)
    (tmp_path / "zt_stuck.py").write_text(STUCK)
    package = tmp_path / "zt_project"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").write_text(DEEP)
    (package / "deep" / "layers.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield str(tmp_path)
    for name in [name for name in sys.modules if name.startswith("zt_")]:
        del sys.modules[name]


@pytest.fixture
def helpers(project):
    module = importlib.import_module("zt_helpers")
    importlib.import_module("zt_stuck")
    return module


def far(function, *args, absent):
    """A rank that has no such folder."""
    with Rig() as rig:
        assert isinstance(rig.ready, Ready)
        return rig.run(rig.step(), letter.dump_task(function, args, {}, absent))[0]


def test_a_function_of_a_module_that_is_not_there(helpers, project):
    rank = far(helpers.work, 5, absent=[project])
    assert rank.payload == (14, 13, 5), rank.err.decode()
    assert far(helpers.work, 5, absent=[]).answer.kind == "unpicklable"  # so it was not there indeed


def test_results_are_of_the_very_classes(helpers, project):
    point, color, error = far(helpers.make, helpers.Point(7), absent=[project]).payload
    assert type(point) is helpers.Point
    assert point == helpers.Point(8)
    assert color is helpers.Color.RED
    assert error is helpers.MyError


def test_exceptions_are_caught_by_their_class(helpers, project):
    rank = far(helpers.fail, 9, absent=[project])
    assert rank.answer.kind == "exception"
    with pytest.raises(helpers.MyError) as caught:
        raise rank.payload
    assert type(caught.value) is helpers.MyError
    assert (caught.value.code, caught.value.hint) == (9, "look here")
    assert "MyError: 9" in rank.answer.text

    rank = far(helpers.fail_with_cause, absent=[project])
    assert type(rank.payload) is sys.modules["zt_project.deep"].Other


def test_what_has_come_can_be_imported_and_what_has_not_cannot(helpers, project):
    def late():
        from zt_project.deep import layers

        return helpers.SCALE, layers.depth(20), "zt_helpers" in sys.modules

    def alone():
        import zt_project.deep

        return zt_project.deep

    assert far(late, absent=[project]).payload == (3, 20, True)  # helpers has a module that has one
    rank = far(alone, absent=[project])
    assert "ModuleNotFoundError: No module named 'zt_project'" in rank.answer.text


def test_nothing_stays_registered(helpers, project):
    stuck = sys.modules["zt_stuck"]
    assert cloudpickle.list_registry_pickle_by_value() == set()
    letter.dump_task(helpers.work, (1,), {}, [project])
    with pytest.raises(SerializationError):
        letter.dump_task(stuck.locked, (), {}, [project])
    assert cloudpickle.list_registry_pickle_by_value() == set()
    cloudpickle.register_pickle_by_value(helpers)
    try:
        letter.dump_task(helpers.work, (1,), {}, [project])
        assert cloudpickle.list_registry_pickle_by_value() == {"zt_helpers"}
    finally:
        cloudpickle.unregister_pickle_by_value(helpers)


def test_two_threads_do_not_disturb_each_other(helpers, project):
    expected = bytes(letter.dump_task(helpers.work, (1,), {})[0])
    wrong = []

    def by_value():
        for _ in range(30):
            letter.dump_task(helpers.work, (1,), {}, [project])

    def by_reference():
        made = (bytes(letter.dump_task(helpers.work, (1,), {})[0]) for _ in range(300))
        wrong.extend(frame for frame in made if frame != expected)

    threads = [threading.Thread(target=target) for target in (by_value, by_value, by_reference)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_what_cannot_travel_by_value_is_told_why_it_must(helpers, project):
    stuck = sys.modules["zt_stuck"]
    with pytest.raises(SerializationError) as caught:
        letter.dump_task(stuck.locked, (), {}, [project])
    text = str(caught.value)
    assert "function locked cannot be pickled (its part global 'lock', a _thread.lock)" in text
    assert "zt_stuck" in text
    assert f"not all hosts have the folder(s) {project}" in text

    def uses():
        return stuck.locked()

    with pytest.raises(SerializationError, match=r"its part variable 'stuck'\.lock, a _thread.lock.*By value is how"):
        letter.dump_task(uses, (), {}, [project])
    lock = threading.Lock()
    with pytest.raises(SerializationError) as caught:  # that would not travel in any way
        letter.dump_task(lambda: lock, (), {}, [project])
    assert "By value" not in str(caught.value)


def test_which_modules_must_travel_by_value(helpers, project, tmp_path, monkeypatch):
    names = {"zt_helpers", "zt_stuck", "zt_project", "zt_project.deep", "zt_project.deep.layers"}
    assert set(modules_by_value([project])) == names
    assert modules_by_value([]) == modules_by_value(["/nowhere"]) == {}
    # The host may have the same files in another folder of the path, or only a part of them.
    (tmp_path / "other").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    (tmp_path / "other" / "zt_helpers.py").touch()
    assert set(modules_by_value([project])) == names - {"zt_helpers"}
    # What is installed, the standard library and zlaunch itself never travel, wherever they are.
    assert not modules_by_value(["/"]).keys() & {"numpy", "json", "zlaunch", "zlaunch.errors", "__main__", "torch"}
