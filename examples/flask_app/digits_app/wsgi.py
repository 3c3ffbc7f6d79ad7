"""The application, made at import: what `gunicorn digits_app.wsgi:app` serves."""

from digits_app import create_app

app = create_app()
