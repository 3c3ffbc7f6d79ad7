"""Flask, with or without flask-restx: batching errors as JSON, a deadline per request, readiness, and a page.

    ubatch = UBatchExtension()

    def create_app():
        app = Flask(__name__)
        app.config.from_mapping(UBATCH_DEADLINE=2.0, UBATCH_READINESS="/ready")
        ubatch.init_app(app)
        return app

Guarantees:

* A `UBatchError` from a view becomes a JSON answer with the error's status, and with `Retry-After` where trying again
  is safe. In a flask-restx resource too, whose `Api` would make a 500 of it, and whether the `Api` came before or after
  this extension.
* A handler of yours for a `UBatchError` wins, on the application, on a blueprint or on an `Api`.
* A view that `no_deadline` marks has no deadline, however long it lives: a websocket, a stream of events.
* Other exceptions, those that a batch handler raised included, go the application's usual way.
* What `ubatch.integrations.wsgi` says of logs, deadlines and readiness: a `UBatchMiddleware` stands around the
  application.

It assumes Flask 2.3 or newer, and flask-restx 1.3 or newer where that is used. Needs the extra `ubatch[flask]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

try:
    from flask import Flask, Response, current_app, request
except ImportError as _error:
    raise ImportError("ubatch.integrations.flask needs Flask: pip install 'ubatch[flask]'") from _error

from .. import UBatchError
from ._page import Page
from .wsgi import LIFT_DEADLINE, MAX_DEADLINE, UBatchMiddleware, answer_to, checked_path, in_a_log

if TYPE_CHECKING:
    from .. import UBatch

__all__ = ["UBatchExtension", "no_deadline"]

_View = TypeVar("_View", bound=Callable[..., Any])


def no_deadline(view: _View) -> _View:
    r"""Mark a view, a class of views, a resource or a method of one: its requests have no deadline.

    Neither `UBATCH_DEADLINE` nor a client's header bounds them, from before `before_request` on; a header that is no
    number of seconds is refused as everywhere. It stands under the decorator that makes the route. What was made
    elsewhere is marked by `no_deadline(app.view_functions["events.stream"])`.

    Raises TypeError for what cannot be a view.

    >>> app = Flask("example")
    >>> app.config["UBATCH_DEADLINE"] = 1.0
    >>> extension = UBatchExtension(app)
    >>> @app.get("/events")
    ... @no_deadline
    ... def events():
    ...     return (f"data: {x}\n\n" for x in range(2))
    >>> app.test_client().get("/events").text
    'data: 0\n\ndata: 1\n\n'
    """
    if not callable(view):
        raise TypeError(f"no_deadline must mark a view, and stand under the route's decorator; got {view!r}")
    view._ubatch_no_deadline = True  # type: ignore[attr-defined]
    return view


class UBatchExtension:
    """Makes a Flask application answer for its batchers. Its settings are in the application's configuration.

    | setting | default | meaning |
    | --- | --- | --- |
    | `UBATCH_DEADLINE` | None | seconds that the calls of a request may take, at most; None: no bound |
    | `UBATCH_DEADLINE_HEADER` | None | the header by which a client may ask for its own; None: no header |
    | `UBATCH_MAX_DEADLINE` | 60.0 | the most seconds that a client gets by that header |
    | `UBATCH_READINESS` | None | a path, where GET tells whether this process is ready; None: no path |
    | `UBATCH_PAGE` | None | a path, such as "/ubatch", of a page that shows what batchers do; None: no page |

    `batchers` are those that readiness asks and the page shows; without them, all that have been called in the process.
    The page is a view of the application, named "ubatch", so what guards the other views guards it too; it shows no
    more than figures and the batchers' names.

    Raises TypeError or ValueError in `init_app` for a setting that cannot be.

    >>> from ubatch import NotProcessed
    >>> app = Flask("example")
    >>> extension = UBatchExtension(app)
    >>> @app.get("/")
    ... def index():
    ...     raise NotProcessed("try again")
    >>> answer = app.test_client().get("/")
    >>> answer.status, answer.headers["Retry-After"], answer.json["error"]
    ('503 SERVICE UNAVAILABLE', '1', 'NotProcessed')
    """

    def __init__(self, app: Flask | None = None, *, batchers: Iterable[UBatch[Any, Any]] | None = None) -> None:
        self._batchers = None if batchers is None else tuple(batchers)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Connect an application that has its configuration. Call it once for each."""
        app.config.setdefault("UBATCH_DEADLINE", None)
        app.config.setdefault("UBATCH_DEADLINE_HEADER", None)
        app.config.setdefault("UBATCH_MAX_DEADLINE", MAX_DEADLINE)
        app.config.setdefault("UBATCH_READINESS", None)
        app.config.setdefault("UBATCH_PAGE", None)
        app.wsgi_app = UBatchMiddleware(  # type: ignore[method-assign]
            app.wsgi_app,
            deadline=app.config["UBATCH_DEADLINE"],
            deadline_header=app.config["UBATCH_DEADLINE_HEADER"],
            max_deadline=app.config["UBATCH_MAX_DEADLINE"],
            readiness=app.config["UBATCH_READINESS"],
            batchers=self._batchers,
        )
        app.register_error_handler(UBatchError, _answer)
        app.preprocess_request = _answering(app, _lifting(app, app.preprocess_request))  # type: ignore[method-assign]
        app.dispatch_request = _answering(app, app.dispatch_request)  # type: ignore[method-assign]
        if app.config["UBATCH_PAGE"] is not None:
            app.add_url_rule(checked_path("UBATCH_PAGE", app.config["UBATCH_PAGE"]), "ubatch", _view(self._batchers))
        app.extensions["ubatch"] = self


# ---------------------------------------------------------------------------------------------------------------------


def _view(batchers: Iterable[UBatch[Any, Any]] | None) -> Callable[[], Response]:
    """The page, and with `?format=json` what it shows."""
    page = Page(batchers)

    def view() -> Response:
        answer = page.json() if request.args.get("format") == "json" else page.html()
        return Response(answer.body, headers=answer.headers)

    return view


def _answer(error: UBatchError) -> Response:
    """The error handler: what the client gets."""
    answer = answer_to(error)
    if answer.status == 500:  # as Flask logs what nobody handles
        where = in_a_log(request.path), in_a_log(request.method)
        current_app.logger.error("Exception on %s [%s]", *where, exc_info=error)
    return Response(answer.body, answer.status, answer.headers)


def _lifting(app: Flask, step: Callable[..., Any]) -> Callable[..., Any]:
    """The first step of Flask's that knows the route."""

    def lifted(*context: Any) -> Any:
        if _is_marked(app):
            request.environ.get(LIFT_DEADLINE, _nothing)()
        return step(*context)

    return lifted


def _is_marked(app: Flask) -> bool:
    """Whether `no_deadline` stands at this request's view, its class, or the method of it that answers."""
    view = None if request.endpoint is None else app.view_functions.get(request.endpoint)
    cls = getattr(view, "view_class", None)
    method = getattr(cls, request.method.lower(), None)
    return any(getattr(one, "_ubatch_no_deadline", False) for one in (view, cls, method))


def _nothing() -> None:
    """The application was called past the middleware."""


def _answering(app: Flask, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of Flask's, with its errors taken to Flask's own error handlers before a flask-restx `Api` gets them.

    An `Api` puts itself in the place of the application's `handle_user_exception`, where it answers every exception
    that it has no handler for with 500, and logs each with its traceback.
    """
    handle: Any = type(app).handle_user_exception

    def answered(*context: Any) -> Any:  # Flask after 3.1 hands its context along
        try:
            return step(*context)
        except UBatchError as error:
            if _restx_handles(app, error):
                raise
            return handle(app, *context, error)

    return answered


def _restx_handles(app: Flask, error: UBatchError) -> bool:
    """Whether the `Api` of this request's endpoint has a handler for this kind of `UBatchError`."""
    handle: Any = app.handle_user_exception
    while isinstance(handle, partial):  # each `Api` stands around what was there before it
        api: Any = getattr(handle.func, "__self__", None)
        if request.endpoint and hasattr(api, "owns_endpoint") and api.owns_endpoint(request.endpoint):
            kinds = {*api.error_handlers, *(kind for space in api.namespaces for kind in space.error_handlers)}
            return any(issubclass(kind, UBatchError) and isinstance(error, kind) for kind in kinds)
        handle = handle.args[0]
    return False
