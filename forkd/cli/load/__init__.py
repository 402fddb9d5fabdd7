"""forkd load: a load test of any TCP service.

attempt    when a link may try to connect again
chart      the figures as a picture
command    the options of forkd load, turned into a plan and one call
figures    what the loop has counted, and its way into the tally
link       one connection, and the calls on its socket
links      the connections of a process: made, lost, made again
loop       the client loop of one process
open_loop  requests that are due, given to connections that are free
plan       what a load test is asked to do, checked and shared out
replies    how many replies are in what arrived, and how many are wrong
report     the figures as a document, a table and a moving line
run        the processes of a test: started, watched, added up
schedule   when requests are due
tally      what a process counts, in shared memory
terminal   how tables look on a terminal
"""
