"""Services on this machine that stand in for others: a handler of requests, served for as long as a block lasts."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn(BaseHTTPRequestHandler):
    """Answers with JSON, or with bytes of another kind; its state is the server's."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, content=None, kind="application/json", **headers):
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def log_message(self, *_):
        pass


@contextmanager
def served(handler, **state):
    """The server, with this state and its `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state, url=f"http://127.0.0.1:{server.server_port}", daemon_threads=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
