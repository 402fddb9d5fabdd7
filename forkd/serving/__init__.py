"""One connection, from its first byte to its last, and what the author of a service sees of it.

answering           the fast path of an event worker: all clients that are ready, one after the other
async_connection    a connection as a coroutine sees it
async_visit         a connection whose handler is a coroutine
connection          a connection as a handler sees it, and its socket
conversation        the request loop, for every case
counted_framings    framings that know a request's size ahead
decoder             one framing applied to one stream, with a clock for the request that has begun
delimited_framings  framings whose requests end at a mark
exchange            the fast path of a sync worker
framing             what a framing is
holding             what those framings share
loading             finds a service by module:name
outcome             how a connection ended
service             a handler with its framing and hooks
visit               a connection in an event worker
"""
