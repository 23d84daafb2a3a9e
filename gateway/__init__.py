"""The HTTP face of the platform. ``app.create_app`` makes the ASGI app, ``python -m gateway`` serves it."""
