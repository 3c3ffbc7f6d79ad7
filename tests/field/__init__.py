"""uBatch in real programs: real models, servers, clients, loggers, sessions, signals. Named by what must hold.

What a test needs beyond the `dev` extra it takes with `pytest.importorskip`; `make test` installs the `field` extra.
"""
