"""Deciding, without a clock, a process or a socket: events in, actions out.

backoff     how soon whatever failed may be tried again
clock       the master's own clock, which stops while the master is stopped
events      what the lifecycle is told, and what it orders
generation  a fork server and its workers: what each is waited for, and the orders they get
pool        a service's generations: what there is against what is wanted
server      the whole server: its phase and its pools
states      states of fork servers and workers, and the legal moves between them
"""
