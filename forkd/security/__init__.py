"""Who may run as whom, read what and change what.

identity    the user and group each service runs as
paths       an application's files, and every folder and link on the way to a file
privileges  dropping privileges for good
reach       what a service's user has to be able to read, and what stands in the way
trust       files that root would obey or run although others can change them: refused
"""
