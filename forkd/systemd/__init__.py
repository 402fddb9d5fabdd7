"""The service manager's protocols.

notify   messages to the service manager, with descriptors and the barrier
passed   sockets that systemd passes in
reports  what to tell the service manager, and when
store    names of the sockets that the service manager keeps for us
strays   processes that applications leave running in our unit's cgroup
"""
