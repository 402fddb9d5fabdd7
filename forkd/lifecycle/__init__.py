"""Deciding, without a clock, a process or a socket: events in, actions out.

backoff     how soon something that failed may be tried again
clock       the master's own clock, which stops while the master is stopped
events      events, which say what happened, and actions, which say what to do
generation  a fork server and its workers: their deadlines, and the orders they get
pool        a service's generations: what exists, compared with what is wanted
server      the whole server: its phase and its pools
states      states of fork servers and workers, and the legal moves between them
"""
