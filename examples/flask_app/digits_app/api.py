"""The endpoints: what they take and what they answer, with a Swagger page at `/`.

An answer is always a JSON object; one that reports a problem holds `message`, which says what must
be. Which status means what is decided in one place, `_problems_as_answers`; but what becomes of a
`UBatchError` is up to uBatch's Flask extension (`create_app`), which also answers `GET /readyz`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import current_app, request
from flask_restx import Api, Namespace, Resource, fields
from werkzeug.exceptions import RequestEntityTooLarge

from digits_app.batching import Services
from digits_app.inputs import LONGEST_TITLE, InvalidInput, image_from, title_from
from digits_app.model import BRIGHTEST, PIXELS, Prediction
from digits_app.titles import UpstreamError

MAX_BODY = 16 * 1024

Answer = dict[str, Any] | tuple[dict[str, Any], int]

digits = Namespace("digits", "Handwritten digits, read by a random forest", path="/")
titles = Namespace("titles", "Titles, checked by another web service", path="/")
service = Namespace("service", "The state of this process", path="/")

_image = digits.model(
    "Image",
    {
        "pixels": fields.List(
            fields.Float(min=0, max=BRIGHTEST),
            required=True,
            min_items=PIXELS,
            max_items=PIXELS,
            description="eight rows of eight pixels, from 0 (paper) to 16 (ink)",
            example=[0, 0, 5, 13, 9, 1, 0, 0] * 8,
        )
    },
)
_prediction = digits.model(
    "Prediction",
    {
        "digit": fields.Integer(required=True, min=0, max=9, example=3),
        "confidence": fields.Float(required=True, min=0, max=1, example=0.93),
    },
)
_sample = digits.model(
    "Sample",
    {
        "sample": fields.Integer(required=True, min=0, example=7),
        "digit": fields.Integer(required=True, min=0, max=9, example=3),
        "confidence": fields.Float(required=True, min=0, max=1, example=0.93),
        "label": fields.Integer(required=True, min=0, max=9, description="what it really shows"),
    },
)
_title = titles.model(
    "Title",
    {"title": fields.String(required=True, max_length=LONGEST_TITLE, example="You won't believe!")},
)
_title_prediction = titles.model(
    "TitlePrediction",
    {"prediction": fields.Boolean(required=True, description="whether the title is fake")},
)
_handler_stats = service.model(
    "HandlerStats",
    {
        "calls": fields.Integer(required=True, description="how often the handler was called"),
        "items": fields.Integer(required=True, description="with how many items in all"),
        "mean_batch_size": fields.Float(required=True),
    },
)
_stats = service.model(
    "Stats",
    {
        "pid": fields.Integer(required=True, description="each worker counts for itself"),
        "predict": fields.Nested(_handler_stats),
        "predict_unbatched": fields.Nested(_handler_stats),
        "title": fields.Nested(_handler_stats),
    },
)
_problem = digits.model("Problem", {"message": fields.String(required=True)})
_refusal = digits.model(
    "Refusal",
    {
        "error": fields.String(required=True, example="QueueFull"),
        "message": fields.String(required=True),
        "retry": fields.Boolean(required=True, description="whether trying again is safe"),
    },
)
_health = service.model("Health", {"status": fields.String(required=True, example="ok")})


def _problems_as_answers(view: Callable[..., Answer]) -> Callable[..., Answer]:
    """Turn the exceptions that a caller can do something about into a status and a message."""

    @wraps(view)
    def answer(*args: Any, **kwargs: Any) -> Answer:
        try:
            return view(*args, **kwargs)
        except InvalidInput as error:
            return {"message": str(error)}, 400
        except RequestEntityTooLarge:
            return {"message": f"the body must have at most {MAX_BODY} bytes"}, 413
        except UpstreamError as error:
            return {"message": str(error)}, 502

    return answer


class _Resource(Resource):
    method_decorators = (_problems_as_answers,)


@digits.route("/predict")
class Predict(_Resource):
    @digits.expect(_image)
    @digits.response(200, "The digit", _prediction)
    @digits.response(400, "The body is not an image", _problem)
    @digits.response(413, "The body is too large", _problem)
    @digits.response(503, "Too many wait, or the worker is about to stop", _refusal)
    @digits.response(504, "It took too long", _refusal)
    def post(self) -> Answer:
        """Read one digit, together with those of other requests"""
        return _as_answer(_services().digits.predict(image_from(_body())))


@digits.route("/samples/<int:sample>")
class Sample(_Resource):
    @digits.response(200, "The digit, and what the image really shows", _sample)
    @digits.response(404, "There is no such image", _problem)
    @digits.response(503, "Too many wait, or the worker is about to stop", _refusal)
    @digits.response(504, "It took too long", _refusal)
    def get(self, sample: int) -> Answer:
        """Read an image that the model was not trained with (to try it from a browser)"""
        images, labels = _services().samples
        if sample >= len(images):
            last = len(images) - 1
            return {"message": f"the sample must be from 0 to {last}, but got {sample}"}, 404
        prediction = _services().digits.predict(images[sample])
        return {"sample": sample, **prediction._asdict(), "label": labels[sample]}


@digits.route("/predict-unbatched")
class PredictUnbatched(_Resource):
    @digits.expect(_image)
    @digits.response(200, "The digit", _prediction)
    @digits.response(400, "The body is not an image", _problem)
    @digits.response(413, "The body is too large", _problem)
    def post(self) -> Answer:
        """Read one digit with the same model, alone (to compare)"""
        return _as_answer(_services().digits.predict_unbatched(image_from(_body())))


@titles.route("/title")
class Title(_Resource):
    @titles.expect(_title)
    @titles.response(200, "Whether the title is fake", _title_prediction)
    @titles.response(400, "The body is not a title", _problem)
    @titles.response(413, "The body is too large", _problem)
    @titles.response(502, "The title service gave no answer", _problem)
    @titles.response(503, "The worker is about to stop", _refusal)
    @titles.response(504, "It took too long", _refusal)
    def post(self) -> Answer:
        """Check one title: many requests, one call of the title service"""
        return {"prediction": _services().titles.is_fake(title_from(_body()))}


@service.route("/healthz")
class Health(Resource):
    @service.response(200, "The worker answers", _health)
    def get(self) -> Answer:
        """Whether this process answers"""
        return {"status": "ok"}


@service.route("/stats")
class Stats(Resource):
    @service.response(200, "The counts since this process started", _stats)
    def get(self) -> Answer:
        """How full the batches are"""
        return _services().stats()


def make_api() -> Api:
    """The endpoints, ready for `init_app`; one for each application."""
    api = Api(
        title="Digits",
        version="1.0",
        description="Handwritten digits, many requests in one call of the model (uBatch).",
        catch_all_404s=True,  # as JSON, like every other problem
    )
    for namespace in (digits, titles, service):
        api.add_namespace(namespace)
    return api


# ----------------------------------------------------------------------------------------------


def _services() -> Services:
    services: Services = current_app.extensions["digits_app"]
    return services


def _body() -> bytes:
    # Werkzeug refuses a Content-Length above the limit, but a body without one it cuts off there
    # and says nothing. So its limit is a byte more (`create_app`), and that byte is looked for.
    body = request.get_data()
    if len(body) > MAX_BODY:
        raise RequestEntityTooLarge
    return body


def _as_answer(prediction: Prediction) -> Answer:
    return prediction._asdict()
