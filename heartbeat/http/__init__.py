"""The endpoint: who may send a heartbeat, what is answered, and the server around it. Starlette and uvicorn live here.

The door is `create_app`; `heartbeat serve` puts the app that it makes behind `server.serve`, which alone loads uvicorn.
"""

from heartbeat.http.app import create_app

__all__ = ["create_app"]
