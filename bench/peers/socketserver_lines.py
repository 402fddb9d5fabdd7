"""PORT threads|forks: the standard library's socketserver, with a thread or a process for each connection."""

import socketserver
import sys


class Line(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class Forks(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    max_children = 1024
    request_queue_size = 1024


if __name__ == "__main__":
    kind = Threads if sys.argv[2] == "threads" else Forks
    with kind(("127.0.0.1", int(sys.argv[1])), Line) as server:
        server.serve_forever()
