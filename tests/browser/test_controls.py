"""Every control of the page does something, by mouse and by keyboard."""

from __future__ import annotations

import pytest

from .conftest import Open
from .controls import TABLE, Control, all_of, fingerprint, use_by_mouse
from .opened import VIEWS, Opened, script

pytestmark = pytest.mark.browser


def named(control: Control) -> str:
    return f"{control.view} {control.selector}"


def chosen_last(opened: Opened, control: Control) -> list[int]:
    """Return the numbers of the controls of a kind; those that are chosen already, and would change nothing, are last."""
    chosen = all_of(opened, control).evaluate_all(
        "all => all.map(each => ['aria-selected', 'aria-checked', 'aria-current', 'aria-pressed']"
        ".some(name => ['true', 'page', 'location'].includes(each.getAttribute(name))))"
    )
    return sorted(range(len(chosen)), key=lambda i: chosen[i])


@pytest.mark.parametrize("control", TABLE, ids=named)
def test_a_control_works_by_mouse(open_page: Open, control: Control) -> None:
    opened = open_page(control.page, control.view)
    numbers = chosen_last(opened, control)
    assert numbers, "no such control"
    for i in numbers:
        each = all_of(opened, control).nth(i)
        before = fingerprint(opened, control.changes)
        use_by_mouse(each, control.mouse)
        assert fingerprint(opened, control.changes) != before, f"number {i} changes nothing"


@pytest.mark.parametrize("control", TABLE, ids=named)
def test_a_control_works_by_keyboard(open_page: Open, control: Control) -> None:
    opened = open_page(control.page, control.view)
    for i in chosen_last(opened, control):
        each = all_of(opened, control).nth(i)
        each.focus()
        before = fingerprint(opened, control.changes)
        each.press(control.key)
        assert fingerprint(opened, control.changes) != before, f"number {i} changes nothing"


@pytest.mark.parametrize("view", VIEWS)
def test_no_control_is_missing_from_the_table(open_page: Open, view: str) -> None:
    opened = open_page("digits", f"#{view}", before=[script("listeners.js")])
    opened.page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = opened.page.evaluate(script("controls.js"), [control.selector for control in TABLE])
    assert found
    assert [each["name"] for each in found if not each["rows"]] == []


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_is_reached_by_the_keyboard(open_page: Open, view: str) -> None:
    """By the tab key, or by arrow keys from a control of its group that the tab key reaches."""
    opened = open_page("digits", f"#{view}")
    page = opened.page
    page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    count = page.locator("a, button, input, select, summary, [tabindex]").count()
    for _ in range(count + 1):
        page.keyboard.press("Tab")
        if not page.evaluate(script("reach.js")):
            break
    missed = page.evaluate(script("missed.js"))
    assert not missed, "\n".join(missed)
