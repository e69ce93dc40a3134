"""The server process."""

import socket
from typing import Any

import uvicorn

from spherecf.errors import StorageError


def listen(app: Any, host: str, port: int) -> None:
    """Serve one application at one address until interrupted; see `spherecf.serve.run`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port))
        except OSError as error:
            raise StorageError(
                f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port"
            ) from error
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # who asked for what is nobody's business
            proxy_headers=False,  # else a caller could claim any address and escape the rate limit
            server_header=False,
            ws="none",
            timeout_keep_alive=10,
            timeout_graceful_shutdown=10,
            limit_concurrency=256,
            h11_max_incomplete_event_size=32_768,
        )
        uvicorn.Server(config).run(sockets=[taken])
