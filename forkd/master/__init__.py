"""The master: waits, tells the lifecycle what happened, and does what it answers.

boards           the scoreboards of all services, and what wakes the master
commands         what a signal, or a caller on the control socket, asks of the master
estate           everything a master leaves to the program that replaces it
fork_servers     fork servers: starting them, messages to and from them, and their deaths
handles          what the master holds of a process
master           the wait, and the acts
own_files        what the master opens for itself: log, control socket, PID file
reload           from one reading of the settings to the next, and from one program to the next
roster           which process is which, and how workers come and go
service_manager  the master's side of systemd: reports, and the sockets it stores
site             what one reading of the settings serves
status           the status document
successor        where a program begins that takes a master's place
upgrade          a new program: tried out, then put in the master's place
watches          stacks and handovers, looked at until they are complete
"""
