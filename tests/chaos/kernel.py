"""."""

SCENARIOS = []
