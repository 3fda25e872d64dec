"""A server on loopback that does what it is told, and notes what it was sent: a proxy, or wherever a redirect leads."""

import http.server
import threading
from contextlib import contextmanager

PROXIES = [name for each in ("http", "https", "all", "grpc") for name in (f"{each}_proxy", f"{each.upper()}_PROXY")]
"""Environment variables that name one."""


@contextmanager
def listening(status, headers=(), body=b""):
    """Answers everything alike; gives its URL and the list of what it was sent: method, target, Authorization."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            seen.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **dict(headers)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = answer

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
