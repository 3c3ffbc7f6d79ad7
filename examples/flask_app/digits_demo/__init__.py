"""What shows the application at work, and is no part of it.

`demo` measures it one by one and in batches; `serve` leaves it running, to try. Both start the
application under gunicorn, and `upstream`, the web service that it asks about titles, with the help
of `servers`. `load` has the clients.
"""
