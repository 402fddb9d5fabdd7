"""forkd load: a load test of any TCP service.

attempt    when a link may try to connect again
chart      draws the figures
command    the options of forkd load, turned into a plan and one call
figures    the loop's own counts, and how they get into the tally
link       one connection, and the calls on its socket
links      the connections of a process: made, lost and made again
loop       the client loop of one process
open_loop  matches requests that are due with connections that are free
plan       what a load test should do, checked and divided among processes
replies    counts the replies in what arrived, and the wrong ones
report     the figures as a document, a table and a live line
run        the processes of a test: started, watched, added up
schedule   when requests are due
tally      the counts of a process, in shared memory
terminal   how tables look on a terminal
"""
