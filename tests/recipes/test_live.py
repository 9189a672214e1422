"""A terminal shows a table of domains while a run trains."""

import io
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
rich_console = pytest.importorskip("rich.console")

from pycooldown.recipes.live import LiveTable, domain_table, time_left  # noqa: E402


def logs(domains):
    values = {"loss": 2.5}
    for i, domain in enumerate(domains):
        values |= {f"target/{domain}": 0.1 * (i + 1), f"samples/{domain}": 30 - 10 * i, f"tokens/{domain}": 10 + 20 * i}
        values |= {f"epochs/{domain}": 0.5 + i, f"v/{domain}": 1.0 + i} | ({f"loss/{domain}": 3.25} if i else {})
    return values


def console():
    return rich_console.Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def shown(table):
    where = console()
    where.print(table)
    return [line.replace("│", " ").split() for line in where.file.getvalue().splitlines() if "│" in line]


def test_a_row_for_each_domain_by_target_with_shares_of_what_was_drawn():
    assert shown(domain_table(logs(["en", "sw"]))) == [
        ["sw", "20.00%", "40.00%", "75.00%", "1.50", "3.2500", "2"],
        ["en", "10.00%", "60.00%", "25.00%", "0.50", "1"],  # no loss, since none was drawn after the last log
    ]


def test_of_many_domains_the_largest_are_shown_and_the_others_counted():
    table = domain_table(logs([f"d{i}" for i in range(33)]))
    assert (table.row_count, table.caption) == (30, "and 3 more")
    assert shown(table)[0][0] == "d32"


@pytest.mark.parametrize(("done", "expected"), [(0, "?"), (10, "0:01:30"), (1, "0:15:00")])
def test_time_left_goes_by_the_steps_of_this_process(done, expected):
    assert time_left(10.0, done, 90) == expected


@pytest.mark.parametrize("first", [True, False])
def test_one_rank_prints_and_the_last_table_stays(first):
    table = LiveTable(console())
    state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=first)
    table.on_train_begin(None, state, None)
    state.global_step = 10
    table.on_step_end(None, state, None)
    table.on_log(None, state, None, logs=logs(["en", "sw"]))
    table.on_log(None, state, None, logs={"eval_loss": 2.0})
    table.on_train_end(None, state, None)
    printed = table.console.file.getvalue()
    assert ("sw" in printed and "step 10/10, 0:00:00 left" in printed) == first


def test_a_failed_run_restores_the_terminals_cursor():
    table = LiveTable(console())
    table.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True), None)
    table.close()
    table.close()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    printed = table.console.file.getvalue()
    assert printed.count(hide) == printed.count(show) == 1
