"""Predictions of files: what is found, what is said, where it is written, and what is refused."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.data import image_files
from cifar_jax.data.image_files import find_images, in_threads, read_images, read_list
from cifar_jax.inference.outputs import Format, Row
from cifar_jax.inference.predict import Options, predict_files
from tests.inference.conftest import DATA

ROOT = Path(__file__).parent.parent.parent


def run(classifier, arguments, **options):
    return predict_files(classifier, [str(path) for path in arguments], Options(progress=False, **options))


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- which files ---


def test_files_folders_and_patterns_are_found_once(library, monkeypatch):
    (library / ".hidden").mkdir()
    (library / ".hidden" / "0.png").write_bytes(b"")
    (library / "notes.txt").write_text("no image")
    everything = find_images([library])
    assert len(everything) == 41
    assert everything == sorted(everything, key=lambda path: path.split(os.sep))
    assert find_images([library, library / "class 0", everything[0]]) == everything
    assert set(find_images([f"{library}/*/*.png"])) == set(everything)
    assert set(find_images([f"{library}/**/*.png"])) == set(everything)
    assert find_images([f"{library}/class*"]) == everything
    assert find_images([library / "notes.txt"]) == [str(library / "notes.txt")]  # a file that is named is taken
    literal = library / "a[1].png"
    literal.write_bytes(b"")
    assert find_images([literal]) == [str(literal)]


def test_a_list_may_name_files_that_are_missing(library):
    names = read_list(os.fsencode(f"{library}/class 1\n{library}/gone.png\r\n\n"))
    assert names == [f"{library}/class 1", f"{library}/gone.png"]
    found = find_images([], names)
    assert len(found) == 11
    assert list(read_images(found[-1:], (8, 8, 3))) == ["No such file or directory"]
    assert read_list(b"a\nb.png\0c\0") == ["a\nb.png", "c"]


@pytest.mark.parametrize(
    ("arguments", "listed", "message"),
    [
        (["gone.png"], [], "'gone.png' does not exist"),
        (["*.png"], [], "no images found in '\\*.png'"),
        (["."], [], "no images found in '.'; files with these endings"),
        ([], ["gone.png"], "none of the 1 files of the list exists, the first is 'gone.png'"),
        ([], ["\udcff\n"], r"the first is '\\udcff\\n'"),
        ([], [], "no images were named"),
    ],
)
def test_names_that_mean_nothing_are_refused(tmp_path, monkeypatch, arguments, listed, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cj.InputError, match=message):
        find_images(arguments, listed)


def test_an_empty_list_is_refused():
    with pytest.raises(cj.InputError, match="the list on standard input is empty"):
        read_list(b"\n\n")


# --- their pixels ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "jpg"])
def test_every_format_and_size_is_read(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (50, 30), (200, 40, 90)).save(path)
    (image,) = read_images([str(path)], (6, 9, 3))
    assert image.shape == (6, 9, 3)
    assert np.abs(image.reshape(-1, 3).astype(int) - (200, 40, 90)).max() < 8
    (grey,) = read_images([str(path)], (6, 9, 1))
    assert grey.shape == (6, 9, 1)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    (image,) = read_images([str(tmp_path / "two.gif")], (8, 8, 3))
    assert image[0, 0].tolist() == [255, 0, 0]


def test_a_model_of_other_channels_takes_no_files():
    with pytest.raises(cj.InputError, match="images of 4 channels, and image files give 1 or 3"):
        read_images(["a.png"], (8, 8, 4))


def test_threads_keep_the_order_and_do_not_run_far_ahead():
    taken = itertools.count()
    results = in_threads(lambda item: item, (next(taken) for _ in range(10_000)))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert next(taken) <= image_files.AHEAD + 2 * image_files.CHUNK
    results.close()
    assert list(in_threads(str, range(100))) == [str(number) for number in range(100)]


# --- what a classifier says ---


def test_files_are_predicted_as_their_arrays(classifier, library, images):
    found = classifier.predict(str(library))
    by_name = {Path(path).stem: place for place, path in enumerate(found.paths)}
    expected = classifier.predict(images)
    for number in range(len(images)):
        place = by_name[str(number)]
        assert found.names[place] == expected.names[number]
        np.testing.assert_allclose(found.probabilities[place], expected.probabilities[number], atol=1e-5)
    broken = by_name["broken"]
    assert (found.names[broken], found.indices[broken], found.reasons[broken]) == ("", -1, "not an image")
    assert np.isnan(found.probabilities[broken]).all()
    assert expected.paths is None


def test_more_files_than_a_batch_and_a_single_one(classifier, library, images):
    path = find_images([library / "class 1"])[0]
    single = classifier.predict(path)
    batches = list(classifier.of_files(classifier.probabilities, [path] * 150))
    assert [len(batch.values) for batch in batches] == [64, 64, 22]
    for batch in batches:
        np.testing.assert_allclose(batch.values, single.probabilities.repeat(len(batch.values), 0), atol=1e-6)


def test_the_temperature_calibrates_and_keeps_the_classes(classifier, library, tmp_path):
    soft = replace(classifier, temperature=4.0)
    run(classifier, [library], out=tmp_path / "a.csv", format="csv")
    run(soft, [library], out=tmp_path / "b.csv", format="csv")
    sharp, flat = rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv")
    assert [row["class"] for row in sharp] == [row["class"] for row in flat]
    best = lambda rows: np.mean([float(row["probability_1"]) for row in rows if row["probability_1"]])
    assert best(flat) < best(sharp)


def test_the_digest_is_that_of_the_model(classifier, workdir, other_workdir):
    assert cj.load_classifier(workdir).digest == classifier.digest == replace(classifier, temperature=2.0).digest
    assert cj.load_classifier(other_workdir).digest != classifier.digest
    assert replace(classifier, classes=classifier.classes[::-1]).digest != classifier.digest


# --- rows ---


def test_a_csv_holds_every_value_whole(classifier, library, tmp_path):
    odd = library / 'a, "b"\nc.png'
    Image.fromarray(DATA["test"].images[0]).save(odd)
    summary = run(classifier, [library], out=tmp_path / "rows.csv", format="csv", top=9)
    rows, found = rows_of(tmp_path / "rows.csv"), classifier.predict(str(library))
    assert summary.images == len(rows) == 42
    assert str(odd) in [row["path"] for row in rows]
    for row, path, name, values in zip(rows, found.paths, found.names, found.probabilities, strict=True):
        assert (row["path"], row["class"]) == (path, name)
        if not row["error"]:
            written = {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in (1, 2, 3, 4)}
            assert written == dict(zip(classifier.classes, values.astype(float).tolist(), strict=True))
    (broken,) = [row for row in rows if row["error"]]
    assert (broken["class"], broken["probability_1"], broken["error"]) == ("", "", "not an image")


def test_rows_of_each_format(capsys):
    rows = [Row("a.png", "cat", (("cat", 0.75), ("dog", 0.25)), ""), Row("b\n.png", "", (), "not an image")]
    text = {name: Format(name, 2, False, ["a.png", "b\n.png"]).text(rows) for name in ("table", "jsonl", "csv")}
    assert text["table"].splitlines() == [
        "a.png    cat           cat 75.0%, dog 25.0%",
        "b\\n.png  unreadable: not an image",
    ]
    assert [json.loads(line) for line in text["jsonl"].splitlines()] == [
        {
            "path": "a.png",
            "class": "cat",
            "top": [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}],
            "error": None,
        },
        {"path": "b\n.png", "class": None, "top": [], "error": "not an image"},
    ]
    assert list(csv.reader(io.StringIO(text["csv"]))) == [
        ["a.png", "cat", "cat", "0.75", "dog", "0.25", ""],
        ["b\n.png", "", "", "", "", "", "not an image"],
    ]


def test_the_threshold_of_a_class_decides_in_rows_and_arrays(classifier, library, tmp_path):
    """An image that reaches it is of that class and not unsure, whatever its other probabilities, which stay."""
    chosen = replace(classifier, thresholds={"class 1": 1e-9})
    run(chosen, [library], out=tmp_path / "rows.jsonl", format="jsonl", threshold=0.99)
    found, plain = chosen.predict(str(library)), classifier.predict(str(library))
    reached = plain.probabilities[:, 1] >= 1e-9  # False for the file that cannot be read
    assert 1 < plain.names.count("class 1") < reached.sum()
    for row, name, own in zip(rows_of(tmp_path / "rows.jsonl"), found.names, reached, strict=True):
        assert (row["class"] == "class 1") == (name == "class 1") == own
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)


def test_below_the_threshold_an_image_is_unsure(classifier, library, tmp_path):
    run(classifier, [library], out=tmp_path / "rows.jsonl", format="jsonl", threshold=0.9)
    rows = [row for row in rows_of(tmp_path / "rows.jsonl") if not row["error"]]
    for row in rows:
        sure = row["top"][0]["probability"] >= 0.9
        assert row["class"] == (row["top"][0]["class"] if sure else "unsure")
    assert {row["class"] == "unsure" for row in rows} == {True, False}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.71, 1.0])
def test_an_interrupted_call_is_continued(classifier, library, tmp_path, suffix, share):
    Image.fromarray(DATA["test"].images[0]).save(library / 'a, "b"\n\nc.png')
    whole = tmp_path / f"whole.{suffix}"
    run(classifier, [library], out=whole, format=suffix)
    part = tmp_path / f"part.{suffix}"
    content = whole.read_bytes()
    part.write_bytes(content[: int(share * len(content))])
    (tmp_path / f"{part.name}.call.json").write_bytes((tmp_path / f"{whole.name}.call.json").read_bytes())
    summary = run(classifier, [library], out=part, format=suffix, resume=True)
    assert part.read_bytes() == content
    assert summary.kept + summary.images == 42
    assert (summary.kept > 0) == (share > 0.02)


def test_continuing_cuts_at_every_byte(tmp_path):
    """Whatever a kill leaves, the rows that are kept are whole ones."""
    from cifar_jax.inference.outputs import _rows_of

    form = Format("csv", 1, False, [])
    rows = [Row(f'{number}, "x"\n.png', "cat", (("cat", 0.5),), "") for number in range(3)]
    content = (form.header() + form.text(rows)).encode()
    ends = [len((form.header() + form.text(rows[:count])).encode()) for count in range(4)]
    for size in range(len(content) + 1):
        (tmp_path / "rows.csv").write_bytes(content[:size])
        paths, kept = _rows_of(tmp_path / "rows.csv", form)
        assert kept == max([end for end in ends if end <= size], default=0)
        assert paths == {row.path for row, end in zip(rows, ends[1:], strict=True) if end <= size}


def test_a_file_of_another_call_is_not_continued(classifier, library, tmp_path):
    out = tmp_path / "rows.csv"
    run(classifier, [library], out=out, format="csv")
    before = out.read_bytes()
    with pytest.raises(cj.InputError, match="exists; continue it with --resume, replace it with --force"):
        run(classifier, [library], out=out, format="csv")
    with pytest.raises(cj.InputError, match=r"is of another call \(threshold was 0.0 and is 0.5\)"):
        run(classifier, [library], out=out, format="csv", threshold=0.5, resume=True)
    with pytest.raises(cj.InputError, match=r"another call \(temperature was"):
        run(replace(classifier, temperature=3.0), [library], out=out, format="csv", resume=True)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:3], "damaged\n", *lines[3:]]))
    with pytest.raises(cj.InputError, match=r"line 4 of .* is damaged"):
        run(classifier, [library], out=out, format="csv", resume=True)
    (tmp_path / "rows.csv.call.json").unlink()
    with pytest.raises(cj.InputError, match=r"rows.csv.call.json is missing or damaged"):
        run(classifier, [library], out=out, format="csv", resume=True)
    run(classifier, [library], out=out, format="csv", force=True)
    assert out.read_bytes() == before


# --- sorting ---


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["copy", "symlink", "hardlink"])
def test_files_are_sorted_and_the_source_stays(classifier, library, tmp_path, way):
    before = tree(library)
    run(classifier, [library], copy_to=tmp_path / "sorted", copy_as=way)
    assert tree(library) == before
    found = classifier.predict(str(library))
    expected = {f"{name}/{Path(path).name}" for path, name in zip(found.paths, found.names, strict=True) if name}
    assert set(tree(tmp_path / "sorted")) == expected
    path = next((tmp_path / "sorted").rglob("*.png"))
    assert path.is_symlink() == (way == "symlink")
    assert (path.stat().st_nlink == 2) == (way == "hardlink")


def test_outcomes_are_correct_wrong_and_missed(classifier, library, tmp_path):
    moved = [path.rename(library / "class 2" / path.name) for path in (library / "class 1").glob("*.png")]
    soft = replace(classifier, temperature=2.5)
    sureness = np.median(soft.predict(moved).probabilities.max(-1))  # half of them are named, wrongly
    chosen = {"copy_to": tmp_path / "sorted", "by": "outcome", "threshold": float(sureness)}
    summary = run(soft, [library], out=tmp_path / "rows.jsonl", format="jsonl", **chosen)
    expected = set()
    for row in rows_of(tmp_path / "rows.jsonl"):
        name, true = Path(row["path"]).name, Path(row["path"]).parent.name
        assert row["label"] == true
        if row["error"]:
            assert row["outcome"] is None
        elif row["class"] == true:
            expected.add(f"correct/{true}/{name}")
            assert row["outcome"] == "correct"
        else:
            expected.add(f"missed/{true}/{name}")
            if row["class"] != "unsure":
                expected.add(f"wrong/{row['class']}/{name}")
            assert row["outcome"] == ("missed" if row["class"] == "unsure" else "wrong")
    assert set(tree(tmp_path / "sorted")) == expected
    assert sum(summary.outcomes.values()) == 40
    assert set(summary.outcomes) == {"correct", "wrong", "missed"}


def test_nothing_is_overwritten(classifier, library, tmp_path):
    """Another file of that name keeps its place, and a second call places nothing twice."""
    path = find_images([library / "class 1"])[0]
    name = classifier.predict(path).names[0]
    target = tmp_path / "sorted" / name / Path(path).name
    target.parent.mkdir(parents=True)
    target.write_bytes(b"other")
    for _ in range(2):
        run(classifier, [path], copy_to=tmp_path / "sorted", force=True)
        assert target.read_bytes() == b"other"
        second = target.with_name(f"{target.stem}_2.png")
        assert second.read_bytes() == Path(path).read_bytes()
        assert len(tree(tmp_path / "sorted")) == 2


def test_a_folder_inside_a_source_is_refused(classifier, library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(library)
    for arguments, target in [
        (["photos"], "photos/sorted"),
        (["photos"], "photos"),
        (["photos"], "link/sorted"),
        (["photos/**/*.png"], "photos/sorted"),
        (["photos/class*"], "photos/class 1/sorted"),
    ]:
        with pytest.raises(cj.InputError, match="lies inside the source"):
            run(classifier, arguments, copy_to=Path(target))
    with pytest.raises(cj.InputError, match=r"the source .* lies inside --copy_to"):
        run(classifier, ["photos/class 1"], copy_to=Path("photos"))
    assert set(os.listdir(tmp_path)) == {"photos", "link"}
    assert len(tree(library)) == 41
    Image.fromarray(DATA["test"].images[0]).save(tmp_path / "one.png")
    run(classifier, ["one.png"], copy_to=Path("sorted"))  # a file beside the folder is no source of others
    with pytest.raises(cj.InputError, match="is not empty; name another folder, or add to it with --force"):
        run(classifier, ["one.png"], copy_to=Path("sorted"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "--top=0 names no class"),
        ({"threshold": 1.5}, "--threshold=1.5 is no probability"),
        ({"threshold": float("nan")}, "--threshold=nan is no probability"),
        ({"format": "xml"}, "--format=xml is unknown; it is one of table, jsonl, csv"),
        ({"by": "size"}, "--by=size is unknown"),
        ({"copy_as": "move"}, "--copy_as=move is unknown; it is one of copy, symlink, hardlink"),
        ({"resume": True}, "--resume continues a file; add --out=FILE"),
        ({"by": "outcome"}, "--by=outcome sorts copies; add --copy_to=DIR"),
        ({"views": "many"}, "many"),
    ],
)
def test_options_that_make_no_sense_are_refused(classifier, library, options, message):
    with pytest.raises(cj.InputError, match=message):
        run(classifier, [library], **options)


def test_classes_that_cannot_be_sorted_by_are_refused(classifier, library, tmp_path):
    odd = replace(classifier, classes=("a/b", *classifier.classes[1:]))
    with pytest.raises(cj.InputError, match="class 'a/b' cannot be the name of a folder"):
        run(odd, [library], copy_to=tmp_path / "sorted")
    unsure = replace(classifier, classes=("unsure", *classifier.classes[1:]))
    with pytest.raises(cj.InputError, match="the model has a class 'unsure'"):
        run(unsure, [library], threshold=0.5)
    others = replace(classifier, classes=tuple("abcd"))
    with pytest.raises(cj.InputError, match="needs folders named as the classes, and none of the 41"):
        run(others, [library], by="outcome", copy_to=tmp_path / "sorted")


# --- the command ---


def test_the_command_reads_a_list_and_writes_rows(workdir, library, tmp_path):
    listed = "\n".join([*find_images([library]), f"{library}/gone.png"])
    command = [sys.executable, "launch.py", "predict", "-", f"--workdir={workdir}", "--format=jsonl"]
    done = subprocess.run(command, cwd=ROOT, input=listed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 42
    assert rows[-1]["error"] == "No such file or directory"
    assert "2 could not be read" in done.stderr
    assert "42/42" in done.stderr  # the progress bar


def test_the_name_of_the_file_tells_the_format(workdir, library, tmp_path):
    for name, begins in (("rows.csv", "path,"), ("rows.jsonl", '{"path"'), ("rows.txt", str(library))):
        assert cli.main(["predict", str(library), f"--workdir={workdir}", f"--out={tmp_path / name}"]) == 0
        assert (tmp_path / name).read_text().startswith(begins)


def test_the_command_answers_mistakes_in_one_sentence(workdir, library, tmp_path, capsys, monkeypatch):
    assert cli.main(["predict", str(library), f"--workdir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "gone"), f"--workdir={workdir}"]) == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["predict", "-", f"--workdir={workdir}"]) == 2
    assert "pipe one path a line" in capsys.readouterr().err
