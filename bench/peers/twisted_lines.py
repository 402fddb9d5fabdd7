"""PORT: Twisted's line receiver on its default reactor, which is epoll on Linux."""

import sys

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver


class Line(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 65536

    def lineReceived(self, line: bytes) -> None:  # noqa: N802  # Twisted's name
        self.sendLine(line)


if __name__ == "__main__":
    reactor.listenTCP(int(sys.argv[1]), Factory.forProtocol(Line), backlog=1024, interface="127.0.0.1")
    reactor.run()
