"""Every control of the page does something, by mouse and by keyboard."""

from __future__ import annotations

import pytest

from .conftest import Open
from .controls import (
    CHOSEN,
    GROUPS,
    POINTED_AT,
    SCROLL_BOXES,
    TABLE,
    Control,
    Group,
    all_of,
    fingerprint,
    has_changed,
    use_by_key,
    use_by_mouse,
)
from .opened import VIEWS, Opened, script

pytestmark = pytest.mark.browser


def named(control: Control | Group) -> str:
    return f"{control.view} {control.selector}"


def in_order(opened: Opened, control: Control) -> list[int]:
    """Return the numbers of the controls of a kind; the one that is chosen, and would change nothing, is last."""
    boxes = "checkbox" in control.selector
    chosen = [False if boxes else each for each in all_of(opened, control).evaluate_all(CHOSEN)]
    assert chosen, "no such control"
    return sorted(range(len(chosen)), key=lambda i: chosen[i])


@pytest.mark.parametrize("control", [*TABLE, *POINTED_AT], ids=named)
def test_a_control_works_by_mouse(open_page: Open, control: Control) -> None:
    opened = open_page("digits", control.view)
    for i in in_order(opened, control):
        each = all_of(opened, control).nth(i)
        before = fingerprint(opened, control, each)
        use_by_mouse(each, control.mouse)
        assert has_changed(opened, control, each, before), f"number {i} changes nothing"


@pytest.mark.parametrize("control", TABLE, ids=named)
def test_a_control_works_by_keyboard(open_page: Open, control: Control) -> None:
    opened = open_page("digits", control.view)
    for i in in_order(opened, control):
        each = all_of(opened, control).nth(i)
        each.focus()
        before = fingerprint(opened, control, each)
        use_by_key(each, control.key)
        assert has_changed(opened, control, each, before), f"number {i} changes nothing"


@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_arrow_keys_lead_through_a_group(open_page: Open, group: Group) -> None:
    opened = open_page("digits", group.view)
    controls = all_of(opened, group)
    count = controls.count()
    assert count > 1
    controls.first.focus()
    for i in range(1, count):
        opened.page.keyboard.press(group.key)
        assert controls.evaluate_all("all => all.indexOf(document.activeElement)") == i
        assert controls.evaluate_all("all => all.filter(each => each.tabIndex === 0).length") == 1
        if group.chooses:
            assert controls.evaluate_all(CHOSEN).index(True) == i


@pytest.mark.parametrize("view", VIEWS)
def test_a_box_that_scrolls_does_so_by_mouse_and_keyboard(open_page: Open, view: str) -> None:
    opened = open_page("digits", f"#{view}", width=360)
    opened.open_details()
    boxes = opened.page.locator(f"{SCROLL_BOXES}:visible")
    for i in range(boxes.count()):
        box = boxes.nth(i)
        if box.evaluate("box => box.scrollWidth <= box.clientWidth"):
            continue
        position = "box => box.scrollLeft"
        box.focus()
        box.press("ArrowRight")
        opened.page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
        box.evaluate("box => { box.scrollLeft = 0; }")
        box.hover()
        opened.page.mouse.wheel(40, 0)
        opened.page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
        assert box.evaluate(position) > 0


@pytest.mark.parametrize("view", VIEWS)
def test_no_control_is_missing_from_the_table(open_page: Open, view: str) -> None:
    opened = open_page("digits", f"#{view}", before=[script("listeners.js")])
    opened.open_details()
    opened.settle()
    selectors = [control.selector for control in TABLE] + [SCROLL_BOXES]
    found = opened.page.evaluate(script("controls.js"), selectors)
    assert found
    missing = [each["name"] for each in found if not each["rows"]]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_is_reached_by_the_keyboard(open_page: Open, view: str) -> None:
    """By the tab key, or by arrow keys from a control of its group that the tab key reaches."""
    opened = open_page("digits", f"#{view}")
    page = opened.page
    opened.open_details()
    opened.settle()
    for _ in range(page.locator("a, button, input, select, summary, [tabindex]").count() + 1):
        page.keyboard.press("Tab")
        if not page.evaluate(script("reach.js")):
            break
    grouped = [control.selector for control in GROUPS]
    missed = page.evaluate(script("missed.js"), grouped)
    assert not missed, "\n".join(missed)
