"""The service manager's protocols.

notify   sends messages and descriptors to the service manager, and waits at its barrier
passed   sockets that systemd passes in
reports  decides what to report to the service manager, and when
store    names the sockets that the service manager keeps for us
strays   kills processes that applications leave running in our unit's cgroup
"""
