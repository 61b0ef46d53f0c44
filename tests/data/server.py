"""A web server on loopback that can cut off an answer, ignore ranges or report an error."""

import http.server
import re
import threading


class Server:
    """Serves `content` on loopback; `cut` sends only that many bytes of the next answer."""

    def __init__(self, content: bytes):
        self.content, self.ranges, self.cut, self.status = content, True, None, None
        self.asked: list[str | None] = []  # the Range header of each request
        self.sent = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and outer.ranges else 0
                if outer.status or start >= len(outer.content):
                    self.send_error(outer.status or 416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                body = body[: outer.cut]
                outer.cut = None
                outer.sent += len(body)
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
