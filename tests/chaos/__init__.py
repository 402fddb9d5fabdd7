"""The trial by fire: faults under load, with every reply checked and every request accounted for.

`harness` holds the tools of a scenario, `ledger` compares what was served with what the clients know, and `probe`
reads the kernel's own records. The scenarios are in `changes` (what an operator does), `deaths` (what dies), `kernel`
(what the kernel refuses) and `accounts` (what must be the same afterwards). `__main__` runs them; `page` turns a run
into docs/explanation/reliability.md.
"""
