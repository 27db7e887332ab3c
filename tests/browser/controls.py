"""The table of the page's controls: what each must change when it is used by mouse and by keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .opened import Opened, script

if TYPE_CHECKING:
    from playwright.sync_api import Locator


class Control(NamedTuple):
    """Controls of one kind.

    Attributes
    ----------
    selector : str
        Finds them.
    changes : str
        Finds what each must change; "itself" is the control.
    view : str
        The hash of a view that has them.
    mouse : {"click", "hover", "choose", "slide", "type", "wheel"}
        How the mouse uses them.
    key : str
        The key that uses them when they have the focus; of a group, an arrow key moves on from the chosen one.
    page : str
        The page that has them.
    """

    selector: str
    changes: str
    view: str
    mouse: str = "click"
    key: str = "Enter"
    page: str = "digits"


TABLE: list[Control] = []


def fingerprint(opened: Opened, selector: str) -> int | None:
    """Return a number for all that can be seen of what `selector` finds; None if nothing is shown."""
    opened.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return opened.page.evaluate(script("fingerprint.js"), selector)


def all_of(opened: Opened, control: Control) -> Locator:
    """Return the controls of one kind that are shown, with every <details> open."""
    opened.show(control.view)
    opened.page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    return opened.page.locator(f"{control.selector}:visible")


def use_by_mouse(each: Locator, how: str) -> None:
    """Use a control as a person with a mouse does."""
    if how == "hover":
        each.hover()
    elif how == "choose":  # the list that the system opens cannot be clicked: it is not part of the page
        value = each.input_value()
        options = each.locator("option").evaluate_all("all => all.map(option => option.value)")
        each.select_option(next(option for option in options if option != value))
    elif how == "slide":
        box = each.bounding_box()
        assert box
        ends = [{"x": share * box["width"], "y": box["height"] / 2} for share in (0.03, 0.97)]
        before = each.input_value()
        each.click(position=ends[0])
        if each.input_value() == before:
            each.click(position=ends[1])
    elif how == "type":
        each.click()
        each.press_sequentially("norm")
    elif how == "wheel":
        each.hover()
        each.page.mouse.wheel(40, 0)
    else:
        each.click()
