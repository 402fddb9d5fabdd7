"""A file or a command line, turned into frozen values; every mistake is reported with its line.

config      reading a file or options, and what changed between two readings
reading     a parsed file checked against the schema, all mistakes at once
schema      every setting: type, bounds, default, meaning
toml_lines  the line of every key of a TOML text
"""
