"""The master: waits, tells the lifecycle what happened, and does what it answers.

commands         what a signal asks of the master
estate           everything a master leaves to the program that replaces it
handles          what the master holds of a process
master           the wait, and the acts
own_files        what the master opens for itself: log, control socket, PID file
reload           from one reading of the settings to the next, and from one program to the next
roster           which process is which
service_manager  the master's side of systemd: reports, and the sockets it stores
site             what one reading of the settings serves
status           the status document
successor        where a program begins that takes a master's place
upgrade          a new program: tried out, then put in the master's place
watches          stacks and handovers, looked at until they are complete
"""
