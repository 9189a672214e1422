"""A web server for files with ranges and ETags, which fails where a test asks for it."""

import http.server
import threading
from contextlib import contextmanager


class ObjectServer(http.server.ThreadingHTTPServer):
    """Serve `files`, by path, and list the requests in `requests`, as (method, path, range).

    `faults` holds one entry for each of the next GET requests: a status such as 503, "short" (a body that ends
    early), "drop" (the connection ends without an answer), or `None`.
    """

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.files, self.etags, self.requests, self.faults = {}, {}, [], []
        self.has_etags = self.has_ranges = True
        self.is_closed = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name, content):
        """Store a file and return its URL."""
        self.files[f"/{name}"] = content
        self.etags[f"/{name}"] = f'"{len(self.etags)}-{len(content)}"'
        return f"{self.address}/{name}"

    def change(self, name, content):
        self.files[f"/{name}"] = content
        self.etags[f"/{name}"] = self.etags[f"/{name}"][:-1] + 'x"'

    def restart(self):
        """Return a new server on the port of this one, which has been closed."""
        other = ObjectServer(self.server_port)
        other.files, other.etags, other.requests = self.files, self.etags, self.requests
        return other

    def server_close(self):
        self.is_closed = True  # open connections see this too
        super().server_close()

    def handle_error(self, request, client_address):
        pass  # a client that disconnects is no error


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(None)

    def do_GET(self):
        self.answer(self.server.faults.pop(0) if self.server.faults else None)

    def answer(self, fault):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, wanted))
        content, etag = self.server.files.get(self.path), self.server.etags.get(self.path)
        headers, status = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, 200
        if self.server.has_etags and etag:
            headers["ETag"] = etag
        if fault == "drop" or self.server.is_closed:
            self.close_connection = True
            return
        if isinstance(fault, int):
            status, content = fault, b""
        elif content is None:
            status, content = 404, b""
        elif self.server.has_etags and self.headers.get("If-Match") not in (None, etag):
            status, content = 412, b""
        elif wanted and self.server.has_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[int(first) : int(last) + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if fault == "short" else content)
            self.close_connection = fault == "short"

    def log_message(self, *_):
        pass


@contextmanager
def serve_objects(server=None):
    server = server or ObjectServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
