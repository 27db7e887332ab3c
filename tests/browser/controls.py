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
    view : str
        The hash of a view that has them.
    selector : str
        Finds them.
    changes : str
        Finds what each must change; "parent" is the element around the control.
    mouse : {"click", "hover", "choose", "slide", "type", "skip"}
        How the mouse uses them; "skip" is a link that is shown only while it has the focus.
    key : str
        The key that uses them when they have the focus; "arrow" is the arrow that leads away from a slider's end.
    """

    view: str
    selector: str
    changes: str
    mouse: str = "click"
    key: str = "Enter"


class Group(NamedTuple):
    """Controls among which a key moves the focus."""

    view: str
    selector: str
    key: str
    chooses: bool = False


PANEL = "[role=tabpanel]"  # all but one are hidden
LAYER = "#layer/blocks.0.attn"
TABLE = [
    Control(LAYER, "a.skip", ":focus", "skip"),
    Control("#path", "[role=tab]", PANEL),
    Control("#path", "#controls select", PANEL, "choose", "ArrowDown"),
    Control("#path", "#controls button", "body"),
    Control("#path", "#view-path .patch", ".path-token"),
    Control("#path", "#view-path .stage", PANEL),
    Control("#path", "#view-path summary", "parent"),
    Control(LAYER, "#layer-filter", ".layer-names", "type", "n"),
    Control(LAYER, ".layer-names button", ".layer h2"),
    Control(LAYER, ".layer-names summary", "parent"),
    Control(LAYER, ".layer .near a", ".layer h2"),
    Control(LAYER, ".layer summary", "parent"),
    Control(LAYER, ".layer .check a", PANEL),
    Control("#attention", "#view-attention .patch", ".heads"),
    Control("#attention", "#attention-block", ".heads", "slide", "arrow"),
    Control("#attention", "#view-attention [type=radio]", ".heads", key="Space"),
    Control("#attention", "#view-attention [type=checkbox]", ".heads", key="Space"),
    Control("#attention", "#attention-head", ".matrices", "choose", "ArrowDown"),
    Control("#depth", "#depth-step", ".charts", "slide", "arrow"),
    Control("#depth", "#view-depth summary", "parent"),
    Control("#mistakes", "[data-mistake]", ".mistake h2"),
    Control("#mistakes", ".mistake p a", PANEL),
    Control("#mistakes", "[name=own-scales]", ".mistake", key="Space"),
]
# What is shown where the mouse is, without a click.
POINTED_AT = [
    Control("#path", "#view-path .patch", ".path-token", "hover"),
    Control("#path", "#view-path .stage", ".path-stage", "hover"),
    Control("#attention", "#view-attention .patch", ".heads", "hover"),
]
# Of each group one control is in the tab order, and the key leads from each to the next one; in some groups it is
# chosen at once.
GROUPS = [
    Group("#path", "[role=tab]", "ArrowRight", chooses=True),
    Group("#path", "#view-path .patch", "ArrowRight", chooses=True),
    Group("#path", "#view-path .stage", "ArrowRight"),
    Group(LAYER, ".layer-names :is(button, summary)", "ArrowDown"),
    Group("#attention", "#view-attention .patch", "ArrowRight", chooses=True),
    Group("#mistakes", "[data-mistake]", "ArrowDown", chooses=True),
]
SCROLL_BOXES = ".scroll"


CHOSEN = """all => all.map(each => each.checked === true || ["aria-selected", "aria-checked", "aria-current"].some(
    name => (each.getAttribute(name) ?? "false") !== "false"))"""


def all_of(opened: Opened, kind: Control | Group) -> Locator:
    """Return the controls of one kind that are shown, after opening their view if they are not."""
    found = opened.page.locator(f"{kind.selector}:visible")
    if not found.count():
        opened.show(kind.view)
        opened.open_details()
    return found


def fingerprint(opened: Opened, control: Control, each: Locator) -> int | None:
    """Return a number for all that can be seen of what a control must change; None if nothing is shown."""
    around = each.locator("..") if control.changes == "parent" else opened.page.locator(control.changes)
    return around.evaluate_all(script("fingerprint.js"))


def has_changed(opened: Opened, control: Control, each: Locator, before: int | None) -> bool:
    """Return whether what a control must change is other than `before`, at once or in the next frame."""
    if fingerprint(opened, control, each) != before:
        return True
    opened.settle()
    return fingerprint(opened, control, each) != before


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
        before = each.input_value()
        for share in (0.03, 0.97):
            if each.input_value() == before:
                each.click(position={"x": share * box["width"], "y": box["height"] / 2})
    elif how == "type":
        each.click()
        each.press_sequentially("norm")
    else:
        if how == "skip":
            each.focus()
        each.click()
        each.page.mouse.move(0, 0)  # what was changed by pointing alone is as before


def use_by_key(each: Locator, key: str) -> None:
    """Use a control as a person without a mouse does."""
    each.focus()
    if key == "arrow":
        key = "ArrowRight" if each.evaluate("slider => slider.value === slider.min") else "ArrowLeft"
    each.press(key)
