"""The label audit: folds, flipped labels that are found, duplicates, files and page, resuming, and what is refused."""

import csv
import json
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.commands import audit as command
from cifar_jax.data.duplicates import EXACT, NEAR, Pair
from cifar_jax.reports.audit_accuracy import accuracies, has_copy
from cifar_jax.reports.audit_folds import assign_folds, training_indices
from cifar_jax.reports.audit_labels import judge
from cifar_jax.runs.workdir import read_record
from tests import made
from tests.reports.test_report import Page

CLASSES = ("a", "b", "c")
FOLDS, COUNT = 3, 150


# --- folds ---


@pytest.mark.parametrize(("count", "folds"), [(31, 2), (60, 3), (97, 5)])
def test_folds_are_stratified_and_all_models_see_equally_many_images(count, folds):
    labels = np.random.RandomState(0).randint(0, 3, count)
    fold_of = assign_folds(labels, np.arange(count), folds, 0, CLASSES)
    assert np.ptp(np.bincount(fold_of, minlength=folds)) <= 1
    for label in range(3):
        assert np.ptp(np.bincount(fold_of[labels == label], minlength=folds)) <= 1
    trained = [training_indices(fold_of, fold, 0) for fold in range(folds)]
    assert len({len(chosen) for chosen in trained}) == 1
    for fold, chosen in enumerate(trained):
        assert fold not in fold_of[chosen]
        assert len(set(chosen.tolist())) == len(chosen) >= count - -(-count // folds)
        assert (np.diff(chosen) > 0).all()


def test_copies_stand_in_one_fold_whatever_their_labels():
    random = np.random.RandomState(0)
    groups = random.randint(0, 40, 120)
    fold_of = assign_folds(random.randint(0, 3, 120), groups, 4, 0, CLASSES)
    for group in np.unique(groups):
        assert len(set(fold_of[groups == group].tolist())) == 1
    assert np.bincount(fold_of).min() >= 25


def test_the_seed_decides_the_folds():
    labels = np.arange(60) % 3
    folds = [assign_folds(labels, np.arange(60), 3, seed, CLASSES).tolist() for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


@pytest.mark.parametrize(
    ("labels", "groups", "folds", "answer"),
    [
        ([0, 1, 2] * 4, range(12), 1, "folds is 1; out-of-fold probabilities need at least 2"),
        ([0, 1, 0, 1, 2], range(5), 2, "class 'c' has 1 training image, which stands in one fold"),
        ([0, 1, 0, 1, 2, 2], [0, 1, 2, 3, 4, 4], 2, "class 'c' has 2 training images, which all stand in one fold"),
    ],
)
def test_what_cannot_be_divided_is_refused(labels, groups, folds, answer):
    with pytest.raises(cj.InputError, match=re.escape(answer)):
        assign_folds(np.array(labels), np.array(groups), folds, 0, CLASSES)


# --- accuracy ---


def test_accuracy_is_of_the_images_that_are_named():
    correct = np.array([True, True, False, False, True])
    doubtful = np.array([False, False, True, False, False])
    copied = has_copy([Pair(0, 6, NEAR, 0.9), Pair(3, 4, EXACT, 1.0)], np.array([True] * 5 + [False] * 2))
    assert copied.tolist() == [False, False, False, True, True, False, True]  # that of 0 is no training image
    rows = accuracies("train", correct, doubtful, copied[:5])
    assert [(row.correct, row.count) for row in rows] == [(3, 5), (3, 4), (2, 3), (2, 2)]


# --- a whole audit ---


def flawed():
    """10 flipped labels of COUNT; an equal pair with one label, and a test image that mirrors a training image."""
    train, test = made.split(COUNT, seed=0, size=16), made.split(40, seed=1, size=16)
    random = np.random.RandomState(3)
    labels, images = train.labels.copy(), train.images.copy()
    wrong = random.permutation(COUNT)[:10]
    labels[wrong] = (labels[wrong] + random.randint(1, 4, 10)) % 4
    kept = np.setdiff1d(np.arange(COUNT), wrong)
    first, second = kept[labels[kept] == 0][:2]
    images[second] = images[first]
    test_images = test.images.copy()
    test_images[3] = images[kept[50]][:, ::-1]
    data = {
        "train": cj.dataset(images, labels, train.classes, "made"),
        "test": cj.dataset(test_images, test.labels, train.classes, "made"),
    }
    return data, {images[place].tobytes() for place in wrong}


DATA, WRONG = flawed()
RECIPE = made.recipe({"epochs": 12})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("cleanlab")
    folder = tmp_path_factory.mktemp("audit") / "made"
    return cj.audit(RECIPE, folder, folds=FOLDS, data=DATA, progress=False)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_flipped_labels_are_found(found):
    judged, images = found.labels["train"], DATA["train"].images
    doubtful = {images[place].tobytes() for place in np.flatnonzero(judged.doubtful)}
    assert len(doubtful & WRONG) >= 7
    assert len(doubtful - WRONG) <= 8
    ranked = [image.tobytes() in WRONG for image in images[judged.ranked]]
    assert sum(ranked[:10]) >= 5  # 0.7 by chance
    assert not judged.correct[judged.doubtful].any()


def test_an_image_is_judged_by_the_model_that_has_not_seen_it(found):
    for fold in range(FOLDS):
        run = cj.load_classifier(found.folder / "folds" / str(fold))
        own = found.folds == fold
        np.testing.assert_allclose(
            found.labels["train"].probabilities[own], run.probabilities(DATA["train"].images[own]), atol=1e-6
        )
        digest = read_record(found.folder / "folds" / str(fold))["data"]["train"]
        chosen = training_indices(found.folds, fold, 0)
        assert digest == cj.dataset(DATA["train"].images[chosen], DATA["train"].labels[chosen], made_classes()).digest
        assert not own[chosen].any()
    runs = [cj.load_classifier(found.folder / "folds" / str(fold)) for fold in range(FOLDS)]
    means = np.mean([run.probabilities(DATA["test"].images) for run in runs], axis=0)
    np.testing.assert_allclose(found.labels["test"].probabilities, means, atol=1e-6)


def made_classes():
    return DATA["train"].classes


def test_duplicates_are_found_within_and_across_splits(found):
    assert found.count(EXACT, across=False) == 1
    assert found.count(EXACT, across=True) == 0
    images = np.concatenate([split.images for split in DATA.values()])
    mirrored = [
        pair
        for pair in found.duplicates
        if pair.kind == NEAR and (images[pair.first] == images[pair.second][:, ::-1]).all()
    ]
    assert [found.place(pair.first)[0] + found.place(pair.second)[0] for pair in mirrored] == ["traintest"]
    (pair,) = (pair for pair in found.duplicates if pair.kind == EXACT)
    assert found.folds[pair.first] == found.folds[pair.second]


def test_the_files_say_what_was_found(found):
    rows = rows_of(found.folder / "labels.csv")
    assert len(rows) == COUNT + 40
    train = [row for row in rows if row["split"] == "train"]
    assert sorted(int(row["index"]) for row in train) == list(range(COUNT))
    assert [float(row["quality"]) for row in train] == sorted(float(row["quality"]) for row in train)
    judged = found.labels["train"]
    for row in train:
        index = int(row["index"])
        assert row["label"] == DATA["train"].classes[DATA["train"].labels[index]]
        assert int(row["doubtful"]) == judged.doubtful[index]
        assert int(row["fold"]) == found.folds[index]
        assert float(row["label_probability"]) == pytest.approx(
            judged.probabilities[index, judged.labels[index]], abs=1e-6
        )
    pairs = rows_of(found.folder / "duplicates.csv")
    assert len(pairs) == len(found.duplicates)
    assert pairs[0]["kind"] == EXACT
    with np.load(found.folder / "predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["train_labels"], DATA["train"].labels)
        np.testing.assert_array_equal(arrays["train_probabilities"], judged.probabilities)
    stored = json.loads((found.folder / "audit.json").read_text())
    assert stored["complete"]
    assert stored["doubtful"]["train"] == judged.doubtful.sum()
    assert stored["accuracies"][0]["accuracy"] == judged.correct.mean()
    assert str(int(judged.doubtful.sum())) in str(found)


def test_the_page_can_be_read_without_seeing_it_and_needs_nothing_else(found):
    page = Page((found.folder / "audit.html").read_text())
    for part in ("Summary", "Doubtful labels of train", "Exact duplicates within a split", "Near duplicates across"):
        assert part in page.text, part
    assert all(image.get("alt") and image["src"].startswith("data:") for image in page.all("img"))
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in page.all("svg"))
    doubtful = int(found.labels["train"].doubtful.sum())
    assert sum(image["alt"].startswith("labelled") for image in page.all("img")) >= doubtful
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert not page.all("script")


def test_the_same_call_trains_nothing(found):
    steps = []
    again = lambda: cj.audit(RECIPE, found.folder, folds=FOLDS, data=DATA, progress=False, callbacks=[steps.append])
    same = again()
    assert steps == []
    np.testing.assert_array_equal(same.labels["train"].probabilities, found.labels["train"].probabilities)
    assert same.duplicates == found.duplicates


def test_folds_share_their_programs(tmp_path):
    """Folds of 50, 50 and 49 images: only the first one compiles its epochs."""
    pytest.importorskip("cleanlab")
    compiled, marks = [], []

    def count(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    data = {"train": (DATA["train"].images[1:], DATA["train"].labels[1:])}
    recipe = made.recipe({"epochs": 1, "model.width": 5})
    callbacks = [lambda event: marks.append((event.workdir.name, len(compiled)))]
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        cj.audit(recipe, tmp_path / "a", folds=FOLDS, data=data, callbacks=callbacks, progress=False)
    finally:
        jax.monitoring.clear_event_listeners()
    spent = {name: [done for fold, done in marks if fold == name] for name in "012"}
    assert [max(done) > min(done) for done in spent.values()] == [True, False, False]


def test_an_interrupted_audit_goes_on(found, tmp_path):
    """Ctrl-C in the second fold, and in its training again: the same call ends with the same probabilities."""
    pytest.importorskip("cleanlab")
    workdirs = []

    def interrupt(event):
        workdirs.append(event.workdir.name)
        if event.workdir.name == "1" and event.step >= 24:
            raise KeyboardInterrupt

    call = lambda **options: cj.audit(RECIPE, tmp_path / "a", folds=FOLDS, data=DATA, progress=False, **options)
    with pytest.raises(KeyboardInterrupt):
        call(callbacks=[interrupt])
    assert not json.loads((tmp_path / "a" / "audit.json").read_text())["complete"]
    assert not (tmp_path / "a" / "labels.csv").exists()
    assert set(workdirs) == {"0", "1"}
    workdirs.clear()
    result = call(callbacks=[lambda event: workdirs.append((event.workdir.name, event.step))])
    assert {name for name, _ in workdirs} == {"1", "2"}
    assert min(step for name, step in workdirs if name == "1") > 0
    np.testing.assert_array_equal(result.labels["train"].probabilities, found.labels["train"].probabilities)


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"folds": 4}, "holds another audit (folds: 3 -> 4); name another folder"),
        ({"recipe": made.recipe({"epochs": 2})}, "holds another audit (recipe.epochs: 12 -> 2); name another folder"),
        ({"data": {"train": made.split(60, size=16)}}, "an audit of other training images or labels"),
        ({"folds": 1}, "folds is 1"),
        ({"folds": 300}, "folds is 300, and there are 150 training images"),
        ({"folder": None}, "an audit needs a folder; give folder='audits/NAME'"),
        ({"thumbnail_cosine": 0.0}, "thumbnail_cosine is 0.0; the cosine of two duplicates is above 0"),
        ({"embedding_cosine": 2.0}, "embedding_cosine is 2.0; the cosine of two duplicates is above 0"),
        ({"recipe": made.recipe({"early_stopping.patience": 3})}, "early_stopping.patience is 3; the models of an"),
    ],
)
def test_another_or_an_impossible_audit_is_refused(found, changes, answer):
    before = (found.folder / "audit.json").read_bytes()
    given = {"recipe": RECIPE, "folder": found.folder, "folds": FOLDS, "data": DATA, "progress": False, **changes}
    with pytest.raises(cj.InputError, match=re.escape(answer)):
        cj.audit(given.pop("recipe"), **given)
    assert (found.folder / "audit.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(found):
    with pytest.raises(cj.InputError, match="holds a run or a study; name another folder"):
        cj.audit(RECIPE, found.folder / "folds" / "0", folds=FOLDS, data=DATA, progress=False)
    (found.folder.parent / "damaged").mkdir()
    path = found.folder.parent / "damaged" / "audit.json"
    path.write_text((found.folder / "audit.json").read_text().replace('"folds": 3', '"folds": 5'))
    with pytest.raises(cj.InputError, match=r"audit.json is damaged"):
        cj.audit(RECIPE, path.parent, folds=FOLDS, data=DATA, progress=False)


def test_a_missing_library_is_answered_with_its_command_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(cj.InputError, match=r"needs cleanlab.*pip install -c constraints.txt -e '.\[audit\]'"):
        cj.audit(RECIPE, tmp_path / "a", data=DATA, progress=False)
    assert not (tmp_path / "a").exists()


def test_probabilities_that_are_not_finite_are_refused():
    pytest.importorskip("cleanlab")
    with pytest.raises(cj.InputError, match="the models' probabilities are not finite"):
        judge(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]))


def test_a_class_that_a_split_lacks_is_no_obstacle():
    pytest.importorskip("cleanlab")
    probabilities = np.full((30, 3), 0.05, np.float32)
    labels = np.arange(30) % 2
    probabilities[np.arange(30), labels] = 0.9
    probabilities[4] = [0.05, 0.9, 0.05]
    judged = judge(labels, probabilities)
    assert np.flatnonzero(judged.doubtful).tolist() == [4]
    assert judged.ranked[0] == 4
    assert judged.suggestions(3)[0, 1] == 1


# --- the command ---


def test_the_command_audits_a_folder_of_images_and_names_its_files(tmp_path, monkeypatch, capsys):
    """An image that lies in the folder of the other class is the most doubtful one."""
    pytest.importorskip("cleanlab")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.RandomState(0)
    for name, colour in {"red": (200, 40, 40), "green": (40, 180, 40)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(np.array(colour) + random.randint(-40, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number:02d}.png")
    pixels = np.clip(np.array((200, 40, 40)) + random.randint(-40, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "green" / "stray.png")
    fields = {
        "data.name": "image_folder", "data.path": tmp_path / "images", "data.image_size": 8, "data.test_share": 0,
        "data.validation_share": 0, "model.width": 4, "model.hidden": 8, "epochs": 8, "batch_size": 8,
        "optimizer.learning_rate": 0.02,
    }  # fmt: skip
    arguments = ["audit", "--config=configs/cnn.py", f"--folder={tmp_path / 'a'}", "--folds=2", "--without_test"]
    assert cli.main([*arguments, *(f"--config.{name}={value}" for name, value in fields.items())]) == 0
    rows = rows_of(tmp_path / "a" / "labels.csv")
    assert rows[0]["file"] == str(tmp_path / "images" / "green" / "stray.png")
    assert (rows[0]["label"], rows[0]["suggested"], rows[0]["doubtful"]) == ("green", "red", "1")
    assert len({row["file"] for row in rows}) == 81
    assert all(f"/{row['label']}/" in row["file"] for row in rows)
    assert "stray.png" in (tmp_path / "a" / "audit.html").read_text()
    printed = capsys.readouterr().out
    assert "doubtful labels: " in printed
    assert "audit.html" in printed
    assert command.last_words() == "stopped; 2 of 2 folds are trained, and the same command continues"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--folder="], "--folder is empty; name a folder"),
        (["--config=nowhere.json"], "--config=nowhere.json is a run's recipe; name a --folder for the audit"),
        (["--folds=1", "--folder={0}/x"], "folds is 1"),
        (["--config.epoch=3", "--folder={0}/x"], "did you mean"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(arguments, answer, tmp_path, capsys):
    pytest.importorskip("cleanlab")
    assert cli.main(["audit", *(argument.format(tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("error:") == 1
    assert not (tmp_path / "x").exists()
