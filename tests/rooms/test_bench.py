"""The pure parts of bench: medians and ratios, rounds, figures and the page."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench import about, erlang, processes, record, scaling
from bench.arithmetic import Spread, ratios, spread, three_digits
from bench.asking import Failure
from bench.contenders import BARE, MEASURED
from bench.figures import FIGURES, Figure, Finding, find, reaches
from bench.page import figures_table, page, reach_table, table
from bench.rounds import Entrant, Outcome, Trial, play
from bench.sweeps import all_sweeps
from bench.trials import all_trials

RUN = {
    "date": "2026-01-02",
    "kernel": "6.1.0",
    "processor": "a processor",
    "cores": 2,
    "python": "3.11.7",
    "versions": {"forkd": "0.1.0", "uvloop": "0.19"},
    "rounds": 3,
    "seconds": 2.0,
    "seed": 7,
    "minutes": 1.5,
    "busy before": 0.01,
    "stolen": 0.002,
}


def outcome(**rounds: list[float | None]) -> Outcome:
    made = Outcome("four workers")
    for name, values in rounds.items():
        made.rounds[name] = [None if value is None else {"cpu us": value} for value in values]
    return made


def test_the_median_stands_with_its_range() -> None:
    assert spread([3.0, 1.0, None, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([None]) is None
    assert spread([]) is None


def test_ratios_are_taken_round_by_round_where_both_are_there() -> None:
    assert ratios([2.0, 3.0, None, 4.0], [1.0, 2.0, 1.0, None]) == [2.0, 1.5, None, None]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (0.001234, "0.00123"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (999.6, "1,000"),
        (12345, "12,300"),
    ],
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert three_digits(value) == told


def test_every_entrant_runs_once_a_round_in_an_order_of_the_seed() -> None:
    ran: list[str] = []

    def entrant(name: str) -> Entrant:
        def run() -> Mapping[str, float]:
            ran.append(name)
            return {"cpu us": float(len(ran))}

        return Entrant(name, run, lambda: "")

    trial = Trial("t", "title", [entrant(name) for name in "abcd"])
    played = play(trial, 3, random.Random(1), lambda _: None)
    assert [sorted(ran[at : at + 4]) for at in (0, 4, 8)] == [list("abcd")] * 3
    assert len({tuple(ran[at : at + 4]) for at in (0, 4, 8)}) > 1
    assert all(len(rounds) == 3 for rounds in played.rounds.values())
    first = ran.copy()
    ran.clear()
    play(trial, 3, random.Random(1), lambda _: None)
    assert ran == first


def test_whoever_is_missing_or_fails_is_told_with_the_reason() -> None:
    def fails() -> Mapping[str, float]:
        raise Failure("it does not answer")

    entrants = [Entrant("gone", fails, lambda: "not installed"), Entrant("broken", fails, lambda: "")]
    played = play(Trial("t", "title", entrants), 2, random.Random(1), lambda _: None)
    assert played.absent == {"gone": "not installed"}
    assert played.failures == {"broken": "it does not answer"}
    assert played.values("broken", "cpu us") == [None, None]
    told = page(RUN, {"t": played}, [], {})
    assert "- gone: absent, not installed" in told
    assert "- broken: failed in 2 of 2 rounds, it does not answer" in told


def test_a_figure_is_kept_when_the_median_of_its_ratios_is_within_the_bound() -> None:
    figure = next(each for each in FIGURES if each.name == "sync-64")
    played = Outcome("t", {"forkd sync": [], "C prefork": []})
    for ours, theirs in [(2.4, 2.0), (5.0, 1.0), (1.0, 1.0)]:
        played.rounds["forkd sync"].append({"cpu us": ours})
        played.rounds["C prefork"].append({"cpu us": theirs})
    (finding,) = find({"sync-64": played})
    assert finding == Finding(figure, Spread(1.2, 1.0, 5.0, 3))
    assert finding.kept
    played.rounds["forkd sync"][2] = {"cpu us": 1.3}
    (finding,) = find({"sync-64": played})
    assert finding.kept is False


def test_a_figure_without_a_value_is_told_with_its_reason() -> None:
    played = Outcome("t", {"C prefork": [{"cpu us": 1.0}]}, absent={"forkd sync": "refused"})
    (finding,) = find({"sync-64": played})
    assert finding.kept is None
    assert "absent |  | forkd sync: refused |" in figures_table([finding])


def test_every_figure_is_measured_by_a_trial() -> None:
    trials = {each.name: [entrant.name for entrant in each.entrants] for each in all_trials(1.0)}
    for figure in FIGURES:
        assert figure.ours in trials[figure.trial]
        assert figure.theirs in ["", *trials[figure.trial]]
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)


def test_the_page_has_the_cheapest_first_and_what_it_was_made_with() -> None:
    played = outcome(dear=[9.0, 8.0], cheap=[1.0, 3.0])
    told = page(RUN, {"sync-64": played}, [], {"sync-64": "sync-64.svg"})
    assert "### Four workers" in told
    assert "![four workers](sync-64.svg)" in told
    assert told.index("| cheap | 2.00 (1.00 to 3.00) |") < told.index("| dear | 8.50 (8.00 to 9.00) |")
    assert "uvloop 0.19" in told
    assert "seed 7" in told


def test_figures_are_told_with_bound_median_range_and_verdict() -> None:
    figure = Figure("name", "what it says", 2500, "t", "bytes", "forkd", unit="bytes")
    told = figures_table([Finding(figure, Spread(2600, 2400, 2700, 3))])
    assert told.splitlines()[-1] == "| what it says | 2,500 bytes | 2,600 bytes | 2,400 to 2,700 | **no** |"


def test_a_figure_is_told_beside_what_servers_that_do_less_would_make_of_it() -> None:
    costs = {"forkd sync": 13.0, "C prefork": 10.0, BARE: 11.0, MEASURED: 12.0}
    played = {"sync-64": outcome(**{name: [cost] for name, cost in costs.items()}), "pool": outcome()}
    (reach,) = reaches(find(played), played)
    assert (reach.measured, reach.bare, reach.c) == (1.2, 1.1, 1.0)
    assert reach_table([reach]).endswith("| 1.2 | 1.30 | 1.20 | 1.10 | 1.00 |")
    played["sync-64"].rounds[BARE] = []
    (reach,) = reaches(find(played), played)
    assert reach_table([reach]).endswith("| 1.2 | 1.30 | 1.20 |  | 1.00 |")


def test_a_cell_cannot_break_its_table() -> None:
    assert table([["a"], ["b|c"]]).splitlines()[-1] == "| b\\|c |"


def test_what_was_measured_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    played = {"sync-64": outcome(forkd=[1.0, None])}
    record.write(tmp_path, RUN, played)
    assert record.read(tmp_path) == (RUN, played)


def test_what_a_run_is_told_to_have_begun_with_is_not_on_the_page() -> None:
    run = {"began": 0.0, "began machine": processes.Machine(0, 0, 0), "seed": 1}
    assert about.end(run).keys() == {"seed", "minutes", "stolen"}


def test_the_time_of_the_machine_is_taken_between_two_looks() -> None:
    assert processes.Machine(7, 2, 20).since(processes.Machine(5, 1, 10)) == processes.Machine(2, 1, 10)
    assert processes.machine().total > processes.machine().idle >= 0


@pytest.mark.parametrize(
    ("workers", "load", "chance"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (10, 0.0, 0.0), (2, 2.0, 1.0), (4, 9.0, 1.0)],
)
def test_erlangs_chance_of_waiting_is_that_of_the_tables(workers: int, load: float, chance: float) -> None:
    assert erlang.waiting_chance(workers, load) == pytest.approx(chance)


def test_one_worker_waits_as_the_formula_for_one_says() -> None:
    for load in (0.1, 0.5, 0.9):
        assert erlang.mean_wait(1, load, 2.0) == pytest.approx(2.0 * load / (1 - load))
    assert erlang.mean_wait(1, 1.0, 2.0) == math.inf


def test_the_workers_that_are_needed_are_enough_and_none_too_many() -> None:
    for load in (0.5, 2, 10, 100):
        workers = erlang.workers_for(load, 0.05)
        assert erlang.waiting_chance(workers, load) <= 0.05 < erlang.waiting_chance(workers - 1, load)


def test_the_page_of_scaling_has_a_table_for_every_sweep(tmp_path: Path) -> None:
    every = all_sweeps(1.0)
    outcomes = {}
    for sweep in every:
        made = outcomes[sweep.trial.name] = Outcome(sweep.trial.title)
        made.rounds = {
            each.name: [{"cpu us": 5.0, "p99 us": 80.0, "mean us": 12_000.0}] for each in sweep.trial.entrants
        }
    del outcomes["rate"]
    outcomes["size"].failures["sync, 64"] = "it has ended"
    text = scaling.page(RUN, outcomes, every, tmp_path)
    assert "| 2 workers | 90 % | 2.00 | 42.6 | 85% |" in text
    assert "| 1,024 | 5.00 |" in text
    assert "(not measured)" in text
    assert "- sync, 64: it has ended" in text
    assert "{" not in text.replace("workers = { min, max, spare }", "")
