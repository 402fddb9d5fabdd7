"""What Linux does, one trap per room. Nothing here knows about services, workers or settings.

accounts     users and groups: who a process should run as
address      addresses as people write them and as the kernel reports them
owned_file   socket and PID files, removed only while they are still ours
pidfile      the PID file and its lock: who holds it, and who may take it over
poller       the one place where the master waits
process      processes: starting, titles, exit statuses, reaping
procfs       what /proc says about processes
signals      signals as bytes in a pipe
sockopts     socket options and peer credentials
tap          closes a listener to new callers while its queue is still served
unix_socket  binding a unix socket to its path
"""
