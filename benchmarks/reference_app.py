"""What a heartbeat's latency is compared with: an empty Starlette response, served as plainly as uvicorn can."""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def empty(request: Request) -> Response:
    """Answer with nothing."""
    return Response()


app = Starlette(routes=[Route("/", empty, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=600,
    )
