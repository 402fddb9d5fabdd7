"""Imports well, and holds nothing that could be served."""

number = 42
