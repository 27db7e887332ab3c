"""``minivit inspect``: the page of a run, a file and a named model; what it says; and bad input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused, save_squares
from explored import data_in
from test_cli_trace import save_image, save_model

import minivit

MICRO = ("inspect", "vit_micro_patch4_8", "--set", "depth=1")


def test_a_named_model_has_a_page_of_random_pixels(cli: Minivit) -> None:
    said = cli(*MICRO)
    assert said.status == 0
    assert "has its initial parameters" in said.out
    assert "the image is of random pixels" in said.out
    assert "the loss is that of the model's own prediction" in said.out
    assert re.search(r"the page is page\.html \(\d\.\d MB\)", said.out)
    data = data_in(Path("page.html"))
    assert data["subject"] == {"source": "name", "name": "vit_micro_patch4_8", "checkpoint": None}
    assert data["command"] == "minivit inspect vit_micro_patch4_8 --set depth=1"
    (image,) = data["images"]
    assert (image["label"], image["label_predicted"]) == (image["predicted"], True)


@pytest.mark.usefixtures("pages_without_checks")
def test_json_tells_where_the_page_is_and_what_it_has(cli: Minivit) -> None:
    values = cli(*MICRO, "--out", "of/x.html", "--json").json()
    assert values["out"] == "of/x.html"
    assert values["bytes"] == Path("of/x.html").stat().st_size
    assert values["seconds"] > 0
    data = data_in(Path("of/x.html"))
    assert values["layers"] == len(data["images"][0]["layers"])
    assert (values["full"], values["note"], values["images"]) == (True, "", ["random pixels"])


@pytest.mark.usefixtures("pages_without_checks")
def test_a_file_is_shown_with_images_labels_and_names_of_classes(cli: Minivit) -> None:
    model = save_model()
    files = [save_image("a b.png"), save_image("c.png", (12, 8), "L")]
    said = cli("inspect", "m", "--image", *files, "--label", "dog", "2", "--out", "x.html")
    assert said.status == 0
    assert "c.png (8 x 12) was resized and cropped to 8 x 8 and converted from L to RGB" in said.out
    data = data_in(Path("x.html"))
    assert data["subject"] == {"source": "file", "name": "m", "checkpoint": None}
    assert data["model"]["class_names"] == ["cat", "dog", "frog"]
    assert [(image["name"], image["label"]) for image in data["images"]] == [("a b.png", 1), ("c.png", 2)]
    assert not any(image["label_predicted"] for image in data["images"])
    assert data["command"] == "minivit inspect m --image 'a b.png' c.png --label dog 2 --out x.html"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)[..., :3]
    images = ((pixels / 255 - 0.4) / 0.3).astype(np.float32)[None]
    expected = float(np.asarray(minivit.trace(model, images, [1]).loss))
    assert data["images"][0]["loss"] == pytest.approx(expected, rel=1e-5)  # float32


@pytest.mark.usefixtures("pages_without_checks")
def test_images_are_called_as_their_files_without_folders_where_that_tells_them_apart(cli: Minivit) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
    files = [save_image(file, mode="L") for file in ("one/a.png", "two/a.png", "two/b.png")]
    values = cli(*MICRO, "--image", *files, "--json").json()
    assert values["images"] == ["one/a.png", "two/a.png", "b.png"]
    assert [image["name"] for image in data_in(Path("page.html"))["images"]] == values["images"]


def test_a_run_is_shown_with_a_test_image_and_its_kept_steps(cli: Minivit) -> None:
    folder = save_squares(Path("squares"))
    assert cli("train", folder, *TINY, "--epochs", 2, "--keep-every", 1, "--run", "run").status == 0
    said = cli("inspect", "run", "--index", 7, "--checkpoint", "last")
    assert said.status == 0
    data = data_in(Path("page.html"))
    assert data["subject"] == {"source": "run", "name": "run", "checkpoint": "last"}
    assert data["title"] == "run: every gradient"
    (image,) = data["images"]
    assert image["label"] == 1  # of ten test images, five of each class
    steps = data["depth"]["steps"]
    assert [step["step"] for step in steps] == [*range(len(steps) - 1), None]
    assert steps[-1]["label"] == "last"
    assert data["command"] == "minivit inspect run --index 7 --checkpoint last"


@pytest.mark.usefixtures("pages_without_checks")
def test_a_model_that_is_too_large_for_a_page_is_said_to_be(cli: Minivit) -> None:
    said = cli("inspect", "vit_micro_patch4_8", "--set", "depth=1", "--set", "img_size=112", "--set", "embed_dim=8")
    assert said.status == 0
    assert "This page has statistics alone" in said.out
    assert not data_in(Path("page.html"))["full"]


@pytest.mark.usefixtures("pages_without_checks")
def test_names_of_classes_with_markup_are_text(cli: Minivit) -> None:
    model = minivit.create_model("vit_micro_patch4_8", seed=0, depth=1, num_classes=2)
    names = ["</script><script>alert(1)</script>", "<b>&amp;"]
    minivit.save_model(model, "m", extra={"class_names": names, "mean": [0.5], "std": [0.5]})
    assert cli("inspect", "m", "--label", "<b>&amp;").status == 0
    assert "alert(1)</script>" not in Path("page.html").read_text(encoding="utf-8")
    assert data_in(Path("page.html"))["model"]["class_names"] == names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nothing",), ("no run or model nothing",)),
        (("vit_micro_patch4_9",), ("did you mean", "vit_micro_patch4_8")),
        (("vit_micro_patch4_8", "--index", "-1"), ("--index is -1", "expected at least 0")),
        (("vit_micro_patch4_8", "--image", "no.png"), ("there is no file no.png",)),
        (("vit_micro_patch4_8", "--image", *["a.png"] * 17), ("17 files were given", "at most 16")),
        (("vit_micro_patch4_8", "--label", "10"), ("--label is 10", "0 to 9")),
        (("vit_micro_patch4_8", "--set", "num_classes=0"), ("no head", "num_classes")),
        (("vit_micro_patch4_8", "--backend", "nothing"), ("nothing",)),
    ],
)
def test_bad_input_is_one_line(cli: Minivit, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli("inspect", *args), 2, *words)
    assert not Path("page.html").exists()


def test_a_folder_in_place_of_the_page_is_refused_before_the_work(cli: Minivit) -> None:
    Path("folder").mkdir()
    assert_refused(
        cli("inspect", "no_model_is_opened", "--out", "folder"), 2, "--out is the folder folder", "page.html"
    )


@pytest.mark.usefixtures("pages_without_checks")
def test_a_page_that_cannot_be_written_is_one_line(cli: Minivit) -> None:
    Path("file").touch()
    assert_refused(cli(*MICRO, "--out", "file/page.html"), 1, "file/page.html", "write to another path")


@pytest.mark.usefixtures("pages_without_checks")
def test_a_model_in_the_working_folder_has_the_name_of_the_folder(
    cli: Minivit, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model()
    monkeypatch.chdir("m")
    assert cli("inspect", ".").status == 0
    data = data_in(Path("page.html"))
    assert (data["title"], data["subject"]["name"]) == ("m: every gradient", "m")
