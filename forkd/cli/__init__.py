"""Words on a command line, turned into one call; errors turned into exit statuses.

check           forkd check: trial imports, and warnings
client          forkd call: requests out, replies to a person
detach          becoming a daemon, while those who started it wait until it serves
install         forkd install
launch          what comes before a master: settings read, refusals, where it will be found
load            forkd load
main            the commands
options         options that several commands share, and shell completion
paths           where a control socket is when the settings name none
running_master  the master that already runs: found, told to stop, waited for
start           forkd start, stop and restart
table           the status document on a terminal
trial           one application imported by a throw-away fork server
"""
