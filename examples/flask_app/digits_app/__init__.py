"""A web application that reads handwritten digits, many requests in one call of the model.

`create_app` is the application factory that Flask teaches. The modules beside it, in the order
in which a request meets them:

- `api`: the endpoints, what they accept and what they answer;
- `batching`: where uBatch stands, between the endpoints and the model;
- `model`: the forest, trained once and kept;
- `titles`: the client of another web service that answers many questions in one call.

`settings` checks what comes from the environment. `digits_demo`, beside this package, shows the
application at work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["create_app"]


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the application: the environment's settings, overridden by `config`.

    Trains the model if it is not kept yet (about a second), and so belongs before the fork:
    gunicorn runs it in the master under `--preload`. It starts no thread and no greenlet.

    Raises `SettingsError` if a setting is not what it must be.
    """
    # Imported here, as Flask's tutorial does: `digits_demo.upstream` starts without scikit-learn.
    from flask import Flask
    from ubatch.integrations.flask import UBatchExtension
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    from digits_app import metrics, tracing
    from digits_app.api import MAX_BODY, make_api
    from digits_app.batching import Services
    from digits_app.settings import Settings

    config = config or {}
    settings = Settings.read({**os.environ, **config})
    app = Flask(__name__)
    app.config.from_mapping(
        MAX_CONTENT_LENGTH=MAX_BODY + 1,  # `api._body` says why
        RESTX_ERROR_404_HELP=False,  # no guesses about what the caller meant
        RESTX_MASK_SWAGGER=False,  # no X-Fields header: the answers are small
    )
    app.config.from_mapping(config)
    app.config.from_mapping(
        UBATCH_DEADLINE=settings.deadline,  # no request takes longer, whatever it waits for
        UBATCH_DEADLINE_HEADER="X-Deadline",  # a client that gives up earlier can say so
        UBATCH_MAX_DEADLINE=settings.deadline,
        UBATCH_READINESS="/readyz",
        UBATCH_PAGE="/ubatch",  # open to all, as everything here; guard it where it matters
    )
    services = app.extensions["digits_app"] = Services.make(settings)
    make_api().init_app(app)
    UBatchExtension(app, batchers=services.batchers)
    app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, {metrics.PATH: metrics.page}
    )
    tracing.trace_requests(app)
    return app
