"""The tree, what survives pickling, and the copies that callers get."""

from __future__ import annotations

import builtins
import pickle
from typing import Any

import pytest

import ubatch
from ubatch import BadBatchOutputSize, QueueFull, UBatchError
from ubatch._errors import for_caller

CLASSES = [getattr(ubatch, name) for name in ubatch.__all__]
ERRORS = [cls for cls in CLASSES if isinstance(cls, type) and issubclass(cls, UBatchError)]


def make(cls: type[UBatchError]) -> UBatchError:
    message = "what must be; what was got"
    special = {BadBatchOutputSize: (3, 2), QueueFull: (message, 1.5)}
    return cls(*special.get(cls, (message,)))


def test_the_tree_is_split_by_what_the_caller_may_do_next() -> None:
    safe_to_retry = {cls.__name__ for cls in ERRORS if issubclass(cls, ubatch.NotProcessed)}
    closed = {cls.__name__ for cls in ERRORS if issubclass(cls, ubatch.BatcherClosed)}
    late = {cls.__name__ for cls in ERRORS if issubclass(cls, ubatch.DeadlineExceeded)}
    assert safe_to_retry == {"NotProcessed", "RequestCancelled", "QueueClosed", "QueueFull", "QueueTimeout"}
    assert late == {"DeadlineExceeded", "QueueTimeout", "ResultTimeout"}
    assert closed == {"BatcherClosed", "QueueClosed", "ResultLost"}


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (ubatch.UBatchError, 500),
        (ubatch.NotProcessed, 503),
        (ubatch.QueueFull, 503),
        (ubatch.QueueTimeout, 504),
        (ubatch.ResultTimeout, 504),
        (ubatch.QueueClosed, 503),
        (ubatch.ResultLost, 503),
        (ubatch.DeadlineExceeded, 504),
        (ubatch.BadBatchOutput, 500),
        (ubatch.BadBatchOutputSize, 500),
        (ubatch.HandlerAborted, 500),
    ],
)
def test_an_error_knows_its_http_status(cls: type[UBatchError], status: int) -> None:
    assert cls.http_status == status


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_pickles(cls: type[UBatchError]) -> None:
    error = make(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_the_sizes_of_a_bad_output_are_in_the_message() -> None:
    error = BadBatchOutputSize(1, 0)
    assert (error.input_size, error.output_size) == (1, 0)
    assert str(error) == "the handler must return one output per input: 1 input, but got 0 outputs"


class WithArguments(Exception):
    """Its `__init__` wants what `args` does not hold, and counts its runs."""

    runs = 0

    def __init__(self, code: int, *, detail: str) -> None:
        type(self).runs += 1
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class WithSlots(Exception):
    __slots__ = ("code", "never_set")

    def __init__(self, code: int) -> None:
        self.code = code


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")


class Stubborn(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


def noted() -> Exception:
    error = ValueError("x")
    error.__notes__ = ["a note"]  # what add_note does, from Python 3.11 on
    return error


def raised(function: Any) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


EXCEPTIONS = [
    ValueError("x", 1),
    KeyError("k"),
    OSError(2, "gone", "/a", None, "/b"),
    Stubborn("/a"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    StopIteration(7),
    ImportError("m", name="n", path="p"),
    SyntaxError("bad", ("file", 1, 2, "text")),
    raised(lambda: object().missing),  # type: ignore[attr-defined]
    WithArguments(7, detail="d"),
    WithSlots(7),
    Frozen("x"),
    Unpicklable("x"),
    noted(),
]
FIELDS = ("args", "__dict__", "errno", "filename", "filename2", "strerror", "encoding", "reason", "value", "name",
          "path", "lineno", "text", "obj", "code", "detail", "__notes__")  # fmt: skip


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda error: type(error).__name__)
def test_a_callers_copy_is_of_the_same_type_and_state(error: Exception) -> None:
    copy = for_caller(error)
    assert type(copy) is type(error)
    assert copy is not error
    assert str(copy) == str(error)
    for field in FIELDS:
        assert getattr(copy, field, "none") == getattr(error, field, "none"), field
    assert copy.__cause__ is error
    assert copy.__traceback__ is None


def test_a_copy_runs_no_init_of_the_users() -> None:
    error = WithArguments(7, detail="d")
    before = WithArguments.runs
    for_caller(error)
    assert WithArguments.runs == before


def test_the_notes_of_a_copy_are_its_own() -> None:
    error = noted()
    copy = for_caller(error)
    copy.__notes__.append("another")
    assert error.__notes__ == ["a note"]


def test_a_copy_of_the_librarys_own_error_has_the_cause_of_the_original() -> None:
    cause, error = SystemExit(1), ubatch.HandlerAborted("x")
    assert for_caller(error).__cause__ is None
    error.__cause__ = cause
    assert for_caller(error).__cause__ is cause


# Exception groups, from Python 3.11 on.

Group: Any = getattr(builtins, "ExceptionGroup", None)
groups = pytest.mark.skipif(Group is None, reason="exception groups came with Python 3.11")


def exit_errors(errors: list[Exception], exit_code: int) -> Exception:
    """Of a class made as Python's documentation shows: called with other arguments than a group's."""

    class Errors(Group):  # type: ignore[misc]
        def __new__(cls, errors: list[Exception], exit_code: int) -> Any:
            self = super().__new__(cls, f"exit code: {exit_code}", errors)
            self.exit_code = exit_code
            return self

        def derive(self, errors: list[Exception]) -> Any:
            return Errors(errors, self.exit_code)

    error: Exception = Errors(errors, exit_code)
    return error


@groups
def test_a_callers_copy_of_an_exception_group_holds_the_same_exceptions() -> None:
    inner = Group("inner", [KeyError("k")])
    error = Group("outer", [ValueError("x"), inner])
    error.code = 7
    copy: Any = for_caller(error)
    assert type(copy) is Group
    assert copy is not error
    assert (copy.message, copy.exceptions, copy.code) == ("outer", error.exceptions, 7)
    assert copy.exceptions[1] is inner
    assert copy.__cause__ is error
    assert copy.__traceback__ is None


@groups
def test_a_callers_copy_of_a_group_class_of_the_users_is_whole() -> None:
    error: Any = exit_errors([ValueError("x"), KeyError("k")], 3)
    copy: Any = for_caller(error)
    assert type(copy) is type(error)
    assert (str(copy), copy.exceptions, copy.exit_code) == (str(error), error.exceptions, 3)
    assert copy.args == error.args
    matching, rest = copy.split(KeyError)
    assert ([type(e) for e in matching.exceptions], [type(e) for e in rest.exceptions]) == ([KeyError], [ValueError])
    assert matching.exit_code == 3


@groups
def test_each_caller_raises_a_group_of_its_own() -> None:
    error = Group("g", [ValueError("x")])
    lengths = []
    for _ in range(3):
        copy = for_caller(error)
        with pytest.raises(Group) as caught:
            raise copy
        lengths.append(len(caught.traceback))
    assert lengths == [1, 1, 1]
    assert error.__traceback__ is None
    assert error.exceptions[0].__traceback__ is None


class Uncopiable(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def test_what_is_copied_by_its_own_way_alone_is_copied_so() -> None:
    error = Uncopiable("x")
    copy = for_caller(error)
    assert (type(copy), copy.args) == (Uncopiable, ("x",))
    assert copy is not error


def test_what_cannot_be_copied_is_raised_as_it_is() -> None:
    class Single(Uncopiable):
        def __reduce_ex__(self, _: Any) -> Any:
            raise TypeError("there is one of it")

    error = Single("x")
    assert for_caller(error) is error
