"""The trial by fire: faults under load, with every reply checked and every request accounted for.

`harness` is what a scenario has to work with, `ledger` holds what was served against what the clients
know, `probe` reads the kernel's own books. The scenarios are in `changes` (what an operator does),
`deaths` (what dies), `kernel` (what the kernel refuses) and `accounts` (what must be the same
afterwards); `page` makes docs/explanation/reliability.md of a run, and `__main__` runs them.
"""
