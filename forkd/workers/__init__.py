"""Below the master: the fork server of a service, and the workers it forks.

account      what happened on a connection, for its access record
acceptor     a worker's side of the listeners
context      what a worker serves with
event        the loop of a worker that serves many connections
fork_check   finds what an import left behind that a fork would break
fork_server  imports the application and forks its workers
leash        a worker's orders, and how it learns them
linger       keeps a socket until the client has read its end
reporter     what a worker logs
sync         the loop of a worker that serves one connection at a time
tasks        the loop of event inside asyncio's, for coroutines
tenure       decides when a worker has served long enough
threads      the threads of an event worker
worker       a worker's life: set up, serve, leave
"""
