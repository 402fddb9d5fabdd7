"""A file or a command line, turned into frozen values; every mistake is reported with its line.

config      reads a file or options, and compares two readings
reading     checks a parsed file against the schema, and reports all mistakes at once
schema      every setting: type, bounds, default, meaning
toml_lines  finds the line of every key of a TOML text
"""
