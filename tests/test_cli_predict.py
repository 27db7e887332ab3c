"""``minivit predict`` of folders and of many files, in bounded memory, and ``minivit eval`` by the names of classes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Minivit, assert_refused, save_squares
from PIL import Image

import minivit
from minivit.cli import predict
from minivit.weights import model_metadata, read_tensors, write_tensors

CLASSES = [str(i) for i in range(10)]


def save_model(path: str = "m", **fields: Any) -> minivit.ViT:
    """Save a model for greyscale images of 8 x 8 pixels, or of `fields`."""
    model = minivit.create_model("vit_micro_patch4_8", seed=3, depth=1, **fields)
    head = model.parameters["head.weight"].value
    head[...] = np.random.default_rng(1).normal(size=head.shape)  # it is zero at first
    C = model.config.in_chans
    names = [str(i) for i in range(model.config.num_classes)]
    minivit.save_model(model, path, extra={"class_names": names, "mean": [0.4] * C, "std": [0.3] * C})
    return model


def save_images(folder: str, count: int, size: tuple[int, int] = (8, 8)) -> list[str]:
    """Write random greyscale images and return their paths, sorted."""
    generator = np.random.default_rng(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [str(Path(folder, f"{i:03}.png")) for i in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def test_every_image_in_a_folder_is_classified_in_order(cli: Minivit) -> None:
    save_model()
    expected = sorted([*save_images("photos/inner", 2), *save_images("photos", 3)], key=lambda p: p.count("/"))
    for stray in ("Thumbs.db", ".DS_Store", "notes.txt"):
        Path("photos", stray).write_bytes(b"content")
    Path("photos/.hidden").mkdir()
    Path("photos/inner/loop").symlink_to("..")
    Path("elsewhere").mkdir()
    Path("elsewhere/x.png").write_bytes(Path(expected[0]).read_bytes())
    Path("photos/linked").symlink_to("../elsewhere")
    expected.append("photos/linked/x.png")
    said = cli("predict", "m", "photos", "--json")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == expected
    assert said.err == "skipped 3 files that are not images (photos/.DS_Store, photos/Thumbs.db, photos/notes.txt)\n"
    one_by_one = cli("predict", "m", *expected, "--json").json()
    assert said.json() == one_by_one


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_classified(
    cli: Minivit, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model()
    images = save_images("photos", 2)
    save_images("photos/closed", 1)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    said = cli("predict", "m", "photos", "--json")
    assert_refused(said, 2, "cannot read photos/closed: Permission denied")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == images


def test_a_folder_of_a_system_is_no_part_of_a_folder_of_images(cli: Minivit) -> None:
    """As in a data set."""
    save_model()
    images = save_images("photos", 1)
    save_images("photos/__MACOSX", 1)
    assert [each["path"] for each in cli("predict", "m", "photos", "--json").json()["predictions"]] == images


def test_an_empty_folder_is_named(cli: Minivit) -> None:
    save_model()
    Path("empty").mkdir()
    assert_refused(cli("predict", "m", "empty"), 2, "the folder empty holds no images")


def test_pieces_give_the_same_predictions(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model()
    save_images("photos", 9)
    whole = cli("predict", "m", "photos", "--json").json()["predictions"]
    monkeypatch.setattr(predict, "PIECE", 4)
    said = cli("predict", "m", "photos", "--json")
    for a, b in zip(said.json()["predictions"], whole, strict=True):
        assert (a["path"], [t["label"] for t in a["top"]]) == (b["path"], [t["label"] for t in b["top"]])
    assert said.err.splitlines() == ["classifying images"]


def test_no_more_images_than_a_piece_are_in_memory(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model()
    save_images("photos", 9)
    sizes = []

    def counting(self: minivit.Engine, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sizes.append(len(images))
        return np.zeros((len(images), 10), np.float32)

    monkeypatch.setattr(predict, "PIECE", 4)
    monkeypatch.setattr(minivit.Engine, "predict", counting)
    assert cli("predict", "m", "photos").status == 0
    assert sizes == [4, 4, 1]


def test_of_many_images_one_class_is_shown_and_all_notes_are_single_lines(cli: Minivit) -> None:
    save_model()
    paths = save_images("photos", 25, (9, 9))
    for i in (3, 5):
        Path(paths[i]).write_bytes(b"not an image")
    said = cli("predict", "m", "photos")
    assert said.status == 2
    assert len(said.out.splitlines()) == 1 + 23 + 1
    assert said.out.splitlines()[-1] == "23 images were resized and cropped to 8 x 8"
    assert_refused(said, 2, "2 files cannot be read (photos/003.png, photos/005.png); the first: photos/003.png cannot")
    assert len(said.err.splitlines()) == 1
    assert len(cli("predict", "m", "photos", "--top", 2).out.splitlines()) == 1 + 2 * 23 + 1


def test_a_csv_file_has_a_line_for_each_image(cli: Minivit) -> None:
    save_model()
    save_images("photos", 3)
    expected = cli("predict", "m", "photos", "--top", 2, "--json").json()["predictions"]
    said = cli("predict", "m", "photos", "--csv", "out/classes.csv", "--top", 2)
    assert said.out == "the classes are in out/classes.csv\n"
    header, *rows = csv.reader(Path("out/classes.csv").read_text(encoding="utf-8").splitlines())
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    for row, prediction in zip(rows, expected, strict=True):
        first, second = prediction["top"]
        assert row[0] == prediction["path"]
        assert (row[1], row[3]) == (first["label"], second["label"])
        assert (float(row[2]), float(row[4])) == (first["probability"], second["probability"])
    printed = cli("predict", "m", "photos", "--csv", "-", "--top", 2)
    assert printed.out == Path("out/classes.csv").read_text(encoding="utf-8")
    assert printed.err == ""


def test_a_csv_file_that_cannot_be_written_is_refused_before_any_work(
    cli: Minivit, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model()
    save_images("photos", 1)
    Path("file").write_text("content")
    monkeypatch.setattr(predict, "decode_file", lambda *_: pytest.fail("an image was read"))
    assert_refused(cli("predict", "m", "photos", "--csv", "file/x.csv"), 1, "cannot write file/x.csv")
    assert_refused(cli("predict", "m", "photos", "--csv", "-", "--json"), 2, "--csv - and --json both print")


def test_a_name_that_begins_with_a_dash_or_has_any_bytes(cli: Minivit) -> None:
    save_model()
    (path,) = save_images("photos", 1)
    Path("-x.png").write_bytes(Path(path).read_bytes())
    assert cli("predict", "m", "--", "-x.png").status == 0
    odd = os.fsdecode(b"photos/\xff[*].png")
    Path(path).rename(odd)
    said = cli("predict", "m", "photos", "--json")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == [odd]
    assert cli("predict", "m", "photos", "--csv", "x.csv").status == 0
    assert os.fsencode(odd) in Path("x.csv").read_bytes()


def test_a_turned_photo_is_not_said_to_be_resized(cli: Minivit) -> None:
    save_model(img_size=(16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 8 x 16, shown 16 x 8
    Image.new("L", (16, 8), 99).save("turned.png", exif=exif)
    said = cli("predict", "m", "turned.png")
    assert said.status == 0
    assert "resized" not in said.out


def test_the_crop_and_the_filter_of_the_model_file_are_obeyed(cli: Minivit) -> None:
    model = save_model()
    (path,) = save_images("photos", 1, (20, 30))
    about = model_metadata("m")
    answers = []
    for rule in ({}, {"crop_pct": 0.8}, {"crop_mode": "squash"}, {"interpolation": "nearest"}):
        minivit.save_model(model, "m", extra={**about, **rule})
        top = cli("predict", "m", path, "--top", 10, "--json").json()["predictions"][0]["top"]
        answers.append({item["label"]: item["probability"] for item in top})
    assert all(a != b for i, a in enumerate(answers) for b in answers[:i])
    pixels = Image.open(path).resize((8, 8), Image.Resampling.BICUBIC)  # squashed
    logits = model((np.asarray(pixels, np.float32)[None, :, :, None] / 255 - 0.4) / 0.3)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [answers[2][str(i)] for i in range(10)] == pytest.approx(expected.tolist(), rel=1e-3)


def test_weights_of_timm_with_1000_classes_answer_with_the_names_of_imagenet(cli: Minivit) -> None:
    save_model(num_classes=1000, embed_dim=64, num_heads=1)
    tensors, _ = read_tensors("m/model.safetensors")
    write_tensors("m/model.safetensors", tensors, {"format": "pt"})
    images = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5], "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 1000, "pretrained_cfg": images}
    config["model_args"] = {"num_heads": 1}
    Path("m/config.json").write_text(json.dumps(config))
    (path,) = save_images("photos", 1)
    top = cli("predict", "m", path, "--top", 1000, "--json").json()["predictions"][0]["top"]
    assert {"tench", "golden retriever", "toilet tissue"} <= {item["label"] for item in top}


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_the_number_of_workers_is_an_option(cli: Minivit, run_folder: Path, squares: Path, command: str) -> None:
    images = [squares / "test" / "left"] if command == "predict" else []
    answers = [cli(command, run_folder, *images, "--threads", n, "--json").json() for n in (1, 2)]
    assert answers[0] == answers[1]
    assert_refused(cli(command, run_folder, *images, "--threads", 0), 2, "--threads is 0; expected at least 1")


def test_classes_are_matched_by_name_in_any_order_and_unicode_form(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for part in ("train", "test"):
        (folder / part / "right").rename(folder / part / unicodedata.normalize("NFD", "Zürich"))
    model = save_model(num_classes=2)
    measured = []
    for names in (["left", "Zürich"], ["Zürich", "left"]):
        minivit.save_model(model, "m", extra={"class_names": names, "mean": [0.5], "std": [0.5]})
        measured.append(cli("eval", "m", "--dataset", folder, "--json").json())
        assert [c["label"] for c in measured[-1]["classes"]] == names
    assert measured[0]["accuracy"] == pytest.approx(1 - measured[1]["accuracy"])


@pytest.mark.filterwarnings("default")
def test_a_model_without_class_names_is_evaluated_in_the_order_of_the_data(cli: Minivit, squares: Path) -> None:
    minivit.save_model(
        minivit.create_model("vit_micro_patch4_8", depth=1, num_classes=2), "m", extra={"mean": [0.5], "std": [0.5]}
    )
    said = cli("eval", "m", "--dataset", squares, "--json")
    assert said.json()["images"] == 10
    assert said.err.count("its classes are taken to be those of squares in their order") == 1
    minivit.save_model(minivit.create_model("vit_micro_patch4_8", depth=1), "m", extra={"mean": [0.5], "std": [0.5]})
    assert_refused(cli("eval", "m", "--dataset", squares), 2, "10 classes without names, but squares has 2 classes")


def test_the_file_of_the_csv_is_text_for_any_reader(cli: Minivit) -> None:
    """A comma, a quote or a line break in a name does not break the lines."""
    save_model()
    (path,) = save_images("photos", 1)
    Path(path).rename('photos/a,"b\n.png')
    cli("predict", "m", "photos", "--csv", "x.csv", "--top", 1)
    (row,) = list(csv.reader(io.StringIO(Path("x.csv").read_text(encoding="utf-8"))))[1:]
    assert row[0] == 'photos/a,"b\n.png'


def test_images_of_another_size_than_the_model_takes_are_resized(cli: Minivit) -> None:
    save_model(img_size=16)
    said = cli("eval", "m", "--dataset", "digits")
    assert "the images of digits are resized from 8 x 8 to 16 x 16" in said.out
    assert said.status == 0


@pytest.mark.parametrize("command", ["predict", "eval", "info"])
def test_help_is_no_wider_than_80_columns(cli: Minivit, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, cli(command, "--help").out.splitlines())) <= 80
