"""A user's own images: layouts, splits that stay, modes and formats, and what is refused or left out."""

import csv
import shutil
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.data.decoding import decode
from cifar_jax.data.image_folder import Settings, read_folder
from cifar_jax.data.load import load_splits
from tests import made
from tests.reports.test_report import pictures

COLOURS = {"bad": (200, 40, 40), "good": (40, 180, 40)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image(colour, seed, size=(20, 16)):
    noise = np.random.RandomState(seed).randint(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def folder(path, count=40, suffix=".png", classes=COLOURS):
    for name, colour in classes.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            image(colour, 1000 * len(name) + number).save(path / name / f"{number:03d}{suffix}")
    return path


def settings(path, **changes):
    return Settings(str(path), **{"image_size": 8, **changes})


def of(path, **changes):
    """recipe.data of a folder."""
    fields = {"name": "image_folder", "path": str(path), "image_size": 8, **changes}
    return cj.load_recipe("configs/cnn.py", {f"data.{name}": value for name, value in fields.items()}).data


def members(splits):
    return {name: {image.tobytes() for image in split.images} for name, split in splits.items()}


def content(draw):
    import io

    stream = io.BytesIO()
    draw(stream)
    return stream.getvalue()


# --- layouts ---


def test_a_folder_for_each_class_is_split_by_content(tmp_path):
    splits = load_splits(of(folder(tmp_path / "data")), test=True)
    assert set(splits) == {"train", "validation", "test"}
    counts = {name: len(split.labels) for name, split in splits.items()}
    assert sum(counts.values()) == 80
    assert 5 <= counts["test"] <= 30
    assert splits["train"].classes == ("bad", "good")
    for split in splits.values():
        assert split.images.shape[1:] == (8, 8, 3)
        red = split.images[..., 0].mean((1, 2)) > split.images[..., 1].mean((1, 2))
        np.testing.assert_array_equal(red, split.labels == 0)
    assert set(load_splits(of(tmp_path / "data"), test=False)) == {"train", "validation"}


def test_splits_stay_when_images_are_added(tmp_path):
    before = members(load_splits(of(folder(tmp_path / "data")), test=True))
    for number in range(100, 130):
        image(COLOURS["good"], number).save(tmp_path / "data" / "good" / f"{number}.png")
    after = members(load_splits(of(tmp_path / "data"), test=True))
    assert all(before[name] <= after[name] for name in before)
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 30


def test_given_splits_are_kept(tmp_path):
    for split, count in (("train", 30), ("test", 7)):
        folder(tmp_path / "data" / split, count)
        (tmp_path / "data" / split / "good" / "sub").mkdir()
        image(COLOURS["good"], count).save(tmp_path / "data" / split / "good" / "sub" / "more.png")
    splits = load_splits(of(tmp_path / "data"), test=True)
    assert len(splits["test"].labels) == 15
    assert len(splits["train"].labels) + len(splits["validation"].labels) == 61
    without = load_splits(of(tmp_path / "data", validation_share=0.0), test=True)
    assert "validation" not in without
    assert len(without["train"].labels) == 61


def test_a_csv_names_paths_labels_and_splits(tmp_path):
    folder(tmp_path / "data", 10)
    lines = ["path,label,split"]
    for number in range(10):
        split = "test" if number < 3 else "train"
        lines += [f"good/{number:03d}.png,fine,{split}", f"bad/{number:03d}.png,scratched,{split}"]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines))
    splits = load_splits(of(tmp_path / "data" / "labels.csv", validation_share=0.0), test=True)
    assert splits["train"].classes == ("fine", "scratched")
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 14, "test": 6}


def test_a_folder_is_read_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    from cifar_jax.data import image_folder

    read, calls = image_folder.read_folder, []
    monkeypatch.setattr(image_folder, "read_folder", lambda *given: calls.append(1) or read(*given))
    first = load_splits(of(folder(tmp_path / "data", 20)), test=True)
    again = load_splits(of(tmp_path / "data"), test=True)
    assert len(calls) == 1
    assert {name: split.digest for name, split in again.items()} == {
        name: split.digest for name, split in first.items()
    }
    image(COLOURS["bad"], 999).save(tmp_path / "data" / "bad" / "000.png")
    changed = load_splits(of(tmp_path / "data"), test=True)
    assert len(calls) == 2
    assert members(changed) != members(first)
    load_splits(of(tmp_path / "data", resize_mode="pad"), test=True)
    assert len(calls) == 3


# --- images ---


def test_modes_become_rgb():
    """Grey, palette, 16 bits, transparency on white, an animation's first frame."""
    grey = decode(content(lambda stream: Image.new("L", (8, 8), 100).save(stream, "PNG")), 8, "stretch")
    assert (grey == 100).all()
    deep = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    assert abs(int(decode(content(lambda stream: deep.save(stream, "PNG")), 8, "stretch")[0, 0, 0]) - 155) <= 1
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode(content(lambda stream: clear.save(stream, "PNG")), 8, "stretch") == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(content(lambda stream: palette.save(stream, "PNG")), 8, "stretch")[0, 0].tolist() == [10, 20, 30]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    save = lambda stream: frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert (
        decode(content(save), 8, "stretch")[0, 0].tolist() == [255, 0, 0]
        or decode(content(save), 8, "stretch")[0, 0, 0] > 250
    )


def test_the_orientation_of_a_camera_is_applied():
    tall = Image.new("RGB", (40, 20), "black")
    tall.paste("white", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    found = decode(content(lambda stream: tall.save(stream, "JPEG", exif=exif, quality=95)), 8, "stretch")
    assert found[:3].mean() > 240
    assert found[5:].mean() < 15


@pytest.mark.parametrize(("mode", "expected"), [("stretch", (255, 255)), ("pad", (0, 255)), ("crop", (255, 255))])
def test_the_ways_to_one_size(mode, expected):
    """A wide white image: padded above and below; cropped and stretched to white."""
    wide = content(lambda stream: Image.new("RGB", (40, 20), "white").save(stream, "PNG"))
    found = decode(wide, 8, mode)
    assert found.shape == (8, 8, 3)
    assert (found[0].mean(), found[4].mean()) == expected


# --- what is wrong ---


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path):
    folder(tmp_path / "data", 20)
    (tmp_path / "data" / "good" / "text.png").write_text("no image")
    whole = (tmp_path / "data" / "bad" / "000.png").read_bytes()
    (tmp_path / "data" / "bad" / "cut.png").write_bytes(whole[: len(whole) // 2])
    bomb = content(lambda stream: Image.new("1", (12000, 12000)).save(stream, "PNG"))
    (tmp_path / "data" / "bad" / "bomb.png").write_bytes(bomb)
    with pytest.warns(UserWarning, match="3 of 43 files are left out") as told:
        decoded = read_folder(settings(tmp_path / "data"), progress=False)
    text = str(told[0].message)
    assert all(name in text for name in ("text.png", "cut.png", "12000x12000 pixels are too many to decode"))
    assert sum(len(labels) for labels in decoded.labels.values()) == 40


def test_threads_that_decode_leave_the_filters_of_warnings_alone(tmp_path):
    folder(tmp_path / "data", 100)
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        read_folder(settings(tmp_path / "data"), progress=False)
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("make", "changes", "answer"),
    [
        (lambda path: path.mkdir(), {}, "holds no images in folders of classes"),
        (
            lambda path: folder(path, 9, classes={"good": (1, 1, 1)}),
            {},
            "holds one class, 'good'; a data set needs at least two",
        ),
        (
            lambda path: folder(path, 1),
            {"test_share": 0.0},
            "class 'bad' has 1 images to train on, and needs at least 2",
        ),
        (lambda path: folder(path / "test", 9), {}, "has no folder 'train' beside 'test'"),
        (
            lambda path: [folder(path / name, 9) for name in ("train", "val")],
            {},
            "has a folder 'val'; did you mean 'validation'? rename it",
        ),
        (lambda path: folder(path / "training", 9), {}, "has a folder 'training'; did you mean 'train'?"),
        (lambda path: None, {}, "does not exist; name a folder of images"),
        (lambda path: folder(path, 9), {"resize_mode": "sretch"}, "did you mean 'stretch'"),
        (lambda path: folder(path, 9), {"image_size": 0}, "data.image_size is 0; it must be at least 1 pixel"),
        (lambda path: folder(path, 9), {"test_share": 0.6, "validation_share": 0.5}, "leave nothing to train on"),
    ],
)
def test_what_is_no_data_set_is_refused(make, changes, answer, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(cj.InputError) as error:
        load_splits(of(tmp_path / "data", **{"validation_share": 0.0, **changes}), test=False)
    assert answer in str(error.value)


def test_an_image_in_two_classes_is_refused(tmp_path):
    folder(tmp_path / "data", 9)
    shutil.copy(tmp_path / "data" / "good" / "003.png", tmp_path / "data" / "bad" / "copy.png")
    with pytest.raises(
        cj.InputError, match=r"the same image stands in two classes: as 'bad' \('.*copy.png'\) and as 'good' \("
    ):
        load_splits(of(tmp_path / "data"), test=False)


def test_images_of_two_classes_are_counted(tmp_path):
    folder(tmp_path / "data", 9)
    for number in range(5):
        shutil.copy(tmp_path / "data" / "good" / f"{number:03d}.png", tmp_path / "data" / "bad" / f"copy{number}.png")
    with pytest.raises(cj.InputError, match=r"two classes: as .*; as .*; as .*, and 2 more; remove one of each pair"):
        load_splits(of(tmp_path / "data"), test=False)


def test_images_that_are_in_two_splits_are_told_each_time(tmp_path):
    folder(tmp_path / "data" / "train", 9)
    folder(tmp_path / "data" / "test", 5)
    fields = of(tmp_path / "data", validation_share=0.0)
    for name in COLOURS:  # the images of test are those of train, drawn by the same seeds
        (tmp_path / "data" / "test" / name / "004.png").unlink()
    for _ in range(2):  # read, and from the cache
        with pytest.warns(UserWarning, match=r"8 of 8 test images in .* are train images too: accuracy on them says"):
            load_splits(fields, test=True)


def test_a_folder_without_images_is_told(tmp_path):
    folder(tmp_path / "data", 9)
    (tmp_path / "data" / "empty").mkdir()
    with pytest.warns(UserWarning, match=r"has folders without images, which are no classes: empty"):
        load_splits(of(tmp_path / "data"), test=False)


def test_classes_are_matched_by_name(tmp_path):
    folder(tmp_path / "data" / "train", 9)
    folder(tmp_path / "data" / "test", 5, classes={"good": COLOURS["good"]})
    with pytest.warns(UserWarning, match=r"split 'test' of .* has no images of: bad"):
        splits = load_splits(of(tmp_path / "data"), test=True)
    assert set(splits["test"].labels.tolist()) == {1}
    folder(tmp_path / "data" / "test" / "extra", 1, classes={"a": (1, 1, 1)})
    with pytest.raises(cj.InputError, match=r"split 'test' of .* has the class 'extra', which 'train' has not"):
        load_splits(of(tmp_path / "data"), test=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("file,class\na.png,b\n", r"has the columns \['file', 'class'\]; it needs 'path' and 'label'"),
        ("", r"labels.csv' is empty; it needs a line 'path,label'"),
        ("path,label\ngood/000.png,\n", "line 2 of .* has no label; give 'good/000.png' one, or remove it"),
        ("path,label\n", "names no images to train on; a data set needs images of at least two classes"),
        ("path,label\ngood/000.png,b\ngood/000.png,b\n", "lines 2 and 3 of .* name 'good/000.png'; remove one"),
        ("path,label\ngood/000.png,\xdcber\n".encode("latin-1"), "is no text in UTF-8; save it as 'CSV UTF-8'"),
        ("path,label\nnone.png,b\n", "line 2 of .* names 'none.png', which is not a file"),
        ("path,label,split\ngood/000.png,b,tset\n", "line 2 of .* has the split 'tset'; did you mean 'test'"),
        ("path,label,split\ngood/000.png,b,test\ngood/001.png,b,\n", "names the split of some images only"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(text, answer, tmp_path):
    folder(tmp_path / "data", 3)
    (tmp_path / "data" / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(cj.InputError, match=answer):
        load_splits(of(tmp_path / "data" / "labels.csv"), test=False)


# --- from a folder to a run ---


def test_a_folder_is_trained_evaluated_and_reported(tmp_path):
    """The whole way, from the command's recipe fields; a moved folder with the same images resumes the run."""
    folder(tmp_path / "data", 60)
    fields = {"data.name": "image_folder", "data.path": str(tmp_path / "data"), "data.image_size": 8}
    fields |= {"epochs": 4, "batch_size": 16, "model.width": 4, "model.hidden": 8, "optimizer.learning_rate": 0.02}
    recipe = cj.load_recipe("configs/cnn.py", fields)
    run = cj.fit(recipe, tmp_path / "run", progress=False)
    assert run.classes == ("bad", "good")
    assert run.evaluation.accuracy > 0.9
    assert set(run.digests) == {"train", "validation", "test"}
    assert cj.evaluate(run, "validation", progress=False).accuracy > 0.9
    page = cj.report(tmp_path / "run", progress=False).read_text()
    assert "Predictions are missing" not in page
    shown = pictures(page)
    assert {name.split("/")[0] for _, name in shown} == {"bad", "good"}
    decoded = read_folder(settings(tmp_path / "data", test_share=0.2, validation_share=0.1), progress=False)
    csv_file = tmp_path / "test.csv"
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--save_predictions={csv_file}"]) == 0
    lines = list(csv.DictReader(csv_file.open()))
    assert {line["image"] for line in lines} == {
        str(file.relative_to(tmp_path / "data")) for file in decoded.files["test"]
    }
    for line in lines:
        assert line["label"] == line["image"].split("/")[0]
        own = run.classifier.predict(tmp_path / "data" / line["image"])
        assert (line["class"], line["outcome"] == "correct") == (own.names[0], own.names[0] == line["label"])
        assert float(line[f"probability_{line['class']}"]) == pytest.approx(own.probabilities[0].max(), abs=1e-6)
    given = [f"--data={tmp_path / 'data'}", f"--save_predictions={tmp_path / 'other.csv'}"]
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", *given]) == 2
    assert not (tmp_path / "other.csv").exists()
    of_file = dict(zip(decoded.files["test"], decoded.images["test"], strict=True))
    for pixels, name in shown:
        np.testing.assert_array_equal(pixels, of_file[tmp_path / "data" / name])
    shutil.move(tmp_path / "data", tmp_path / "moved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cj.fit(cj.override(recipe, {"data.path": str(tmp_path / "moved")}), tmp_path / "run", progress=False)
    made.assert_same(again.state, run.state)


def test_test_images_that_changed_after_the_training_are_told_and_shown_nowhere(tmp_path):
    """The stored predictions are of other images: a report would show the wrong pictures."""
    folder(tmp_path / "data", 40)
    fields = {"data.name": "image_folder", "data.path": str(tmp_path / "data"), "data.image_size": 8, "epochs": 1}
    fields |= {"batch_size": 16, "model.width": 4, "model.hidden": 8}
    run = cj.fit(cj.load_recipe("configs/cnn.py", fields), tmp_path / "run", progress=False)
    for name, colour in COLOURS.items():
        for number in range(40, 70):
            image(colour, 1000 * len(name) + number).save(tmp_path / "data" / name / f"{number:03d}.png")
    changed = "the test images of '.*data' are not those of the run: some were added, removed or changed"
    with pytest.raises(cj.InputError, match=changed):
        cj.evaluate(run, "test", progress=False)
    with pytest.warns(UserWarning, match="images in '.*data' have changed since the run in '.*run'; to train on them"):
        cj.fit(cj.load_recipe("configs/cnn.py", fields), tmp_path / "run", progress=False)
    with pytest.warns(UserWarning, match="Predictions are missing: the test images"):
        page = cj.report(tmp_path / "run", progress=False).read_text()
    assert "Predictions are missing: the test images" in page
    assert "most confident errors" not in page
    assert cj.evaluate(run, "test", data=str(tmp_path / "data"), progress=False).count > run.evaluation.count


def test_a_path_that_nothing_reads_is_refused(tmp_path):
    recipe = cj.load_recipe("configs/quickstart.py", {"data.path": str(tmp_path)})
    with pytest.raises(
        cj.InputError, match=r"data.path is '.*', and only data.name=image_folder reads it; data.name is"
    ):
        cj.fit(recipe, tmp_path / "run", progress=False)


def test_a_test_split_that_is_absent_is_told(tmp_path):
    folder(tmp_path / "data", 9)
    with pytest.raises(cj.InputError, match=r"has no test images; add a folder 'test', set data.test_share where"):
        load_splits(of(tmp_path / "data", test_share=0.0), test=True)
