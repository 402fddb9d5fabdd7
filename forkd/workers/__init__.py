"""Below the master: the fork server of a service, and the workers it forks.

account      what a connection came to, for the access log
acceptor     a worker's side of the listeners
context      what a worker needs in order to serve
event        the loop of a worker that serves many connections
fork_check   what an import left behind that a fork would break
fork_server  imports the application and forks its workers
leash        what a worker is ordered, and how it hears of it
linger       closing sockets whose end the client has yet to read
reporter     what a worker logs
sync         the loop of a worker that serves one connection at a time
tasks        the event loop inside asyncio's, for coroutines
tenure       when a worker has served long enough
threads      the threads of an event worker
worker       a worker's life: set up, serve, leave
"""
