"""What belongs to one thread: found in a handler before it runs on another, and in what it raises there.

A connection of SQLite refuses every thread but the one that made it. What is made of sockets, queues or events under
`gevent.monkey` belongs to the hub that it was first used on: elsewhere it raises, or waits for ever. Neither is a fault
of the handler, which runs on the hub as well as anywhere.

The search is a help, and no proof: it looks at what a handler can reach by names in its code, and not at what it makes
when it runs. What it misses shows as an error, which is known by its type or its text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ._names import unwrapped
from ._native import threading_is_patched

ALWAYS = (  # by module and class; where a module is not imported, nothing is of its classes
    ("sqlite3", "Connection"),
    ("sqlite3", "Cursor"),
    ("asyncio", "AbstractEventLoop"),
    ("gevent._abstract_linkable", "AbstractLinkable"),
    ("gevent.queue", "SimpleQueue"),
    ("gevent.queue", "Queue"),
    ("gevent.pool", "Group"),
    ("gevent.threadpool", "ThreadPool"),
    ("gevent.hub", "Hub"),
)
PATCHED = (  # where gevent has patched what these are made of
    ("socket", "socket"),
    ("http.client", "HTTPConnection"),
    ("concurrent.futures", "Executor"),
    ("multiprocessing.pool", "Pool"),
    ("queue", "Queue"),
    ("threading", "Barrier"),
    ("threading", "Condition"),
    ("threading", "Event"),
    ("requests", "Session"),
    ("urllib3", "PoolManager"),
    ("urllib3.connectionpool", "ConnectionPool"),
    ("httpx", "Client"),
    ("redis", "Redis"),
    ("pymongo", "MongoClient"),
    ("pymysql.connections", "Connection"),
    ("sqlalchemy.engine", "Connection"),
    ("sqlalchemy.engine", "Engine"),
    ("sqlalchemy.orm", "Session"),
    ("sqlalchemy.orm", "scoped_session"),
    ("sqlalchemy.orm", "sessionmaker"),
    ("botocore.client", "BaseClient"),
)
FREE = (  # any thread may use these, whatever they are made of
    ("threading", "Lock"),
    ("logging", "Handler"),
    ("logging", "Logger"),
    ("logging", "LoggerAdapter"),
)
ERRORS = (
    ("greenlet", "error"),
    ("gevent.exceptions", "LoopExit"),
    ("gevent.exceptions", "InvalidThreadUseError"),
    ("gevent.exceptions", "InvalidSwitchError"),
    ("gevent.exceptions", "BlockingSwitchOutError"),
)
TEXTS = (
    "child watchers are only available on the default loop",  # gevent: a process was started
    "can only be used in that same thread",  # sqlite3
    "Waiter.switch method from the Hub greenlet",  # gevent's queues
    "signal only works in main thread",
    "There is no current event loop in thread",
)
MOST = 2000  # objects looked at; arbitrary: a model may hold a million
DEEPEST = 6  # steps from the handler
REACHED = 200  # of one object
CHAIN = 10  # exceptions, each the cause or context of the one before


def find_bound(handler: Callable[..., Any]) -> str | None:
    """The first thing found that a handler holds on to and that belongs to one thread, in words; None where there is
    none.
    """
    bound, free = tuple(_classes(ALWAYS + PATCHED * threading_is_patched())), tuple(_classes(FREE))
    home = _package(handler)
    seen: set[int] = set()
    found: list[tuple[str, Any]] = [("", handler)]
    for _ in range(DEEPEST):
        following: list[tuple[str, Any]] = []
        for name, thing in found:
            if id(thing) in seen or len(seen) >= MOST:
                continue
            seen.add(id(thing))
            if isinstance(thing, free):
                continue
            if isinstance(thing, bound):
                return f"{name!r}, a {type(thing).__name__}"
            following += _held(thing, home)
        found = following
    return None


def is_bound_error(error: BaseException) -> bool:
    """Whether an exception, or what it came of, says that something belongs to another thread."""
    types = tuple(_classes(ERRORS))
    link: BaseException | None = error
    for _ in range(CHAIN):
        if link is None:
            return False
        if isinstance(link, types) or any(text in str(link) for text in TEXTS):
            return True
        link = link.__cause__ or link.__context__
    return False


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once. Before Python 3.11 it is there to be read, and no traceback shows it."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        error.__notes__ = [note]
    elif note not in notes:
        notes.append(note)


# ---------------------------------------------------------------------------------------------------------------------


def _classes(names: tuple[tuple[str, str], ...]) -> Iterator[type]:
    for module, name in names:
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type):
            yield found


def _held(thing: Any, home: str) -> Iterator[tuple[str, Any]]:
    """What this can reach, by name. Nothing of the user's is called."""
    if isinstance(thing, partial):
        yield from (("func", thing.func), *(("", value) for value in thing.args), *thing.keywords.items())
    elif isinstance(thing, MethodType):
        yield from (("self", thing.__self__), ("", thing.__func__))
    elif isinstance(thing, FunctionType):
        if _package(thing) == home:
            yield from _held_by_function(thing)
    elif isinstance(thing, list | tuple):
        yield from (("", value) for value in thing[:REACHED])
    elif isinstance(thing, dict):
        yield from ((str(key), value) for key, value in list(thing.items())[:REACHED] if isinstance(key, str))
    elif not isinstance(thing, type | ModuleType):
        yield from list(getattr(thing, "__dict__", {}).items())[:REACHED]
        if _package(type(thing)) == home:
            yield from list(vars(type(thing)).items())[:REACHED]


def _held_by_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    names = set(_names(function.__code__))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    for value in function.__defaults__ or ():
        yield "", value
    yield from (function.__kwdefaults__ or {}).items()
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield "", wrapped
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            yield from ((other, vars(value)[other]) for other in names & vars(value).keys())
        else:
            yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _package(thing: Any) -> str:
    """The top-level package of a function or class, or of what it was made of."""
    thing = unwrapped(thing)
    module = getattr(thing, "__module__", None) or getattr(type(thing), "__module__", None)
    return str(module).split(".")[0]
