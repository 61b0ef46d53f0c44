"""Search by similarity: what an index holds, how it grows, what is found, and what is refused."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.inference import search
from cifar_jax.inference.search import ExactSearch, GraphSearch, new_graph, normalised
from cifar_jax.inference.similar import sheet_of
from tests.inference.conftest import DATA

# --- search ---


def reference(queries, rows, top):
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return np.take_along_axis(scores, order, -1), order


@pytest.mark.parametrize("count", [1, 63, 64, 130])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_the_search_is_exact_in_blocks(monkeypatch, count, block):
    monkeypatch.setattr(search, "BLOCK", block)
    monkeypatch.setattr(search, "SAMPLE", 16)
    random = np.random.RandomState(0)
    # Products of small whole numbers are not rounded: a BLAS may round two equal rows differently, by their places.
    rows, queries = (random.randint(-9, 10, (size, 12)).astype(np.float32) for size in (300, count))
    rows[200:220] = rows[:20]  # equal ones come in their order
    scores, found = ExactSearch([rows[:170], rows[170:]]).search(queries, 10)
    expected, order = reference(queries, rows, 10)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(scores, expected)


def test_rows_that_do_not_fit_the_memory_are_converted_in_blocks(monkeypatch):
    random = np.random.RandomState(0)
    rows, queries = normalised(random.randn(100, 8)).astype(np.float16), normalised(random.randn(5, 8))
    kept = ExactSearch([rows])
    monkeypatch.setattr(search, "IN_MEMORY", 100)
    streamed = ExactSearch([rows])
    assert (kept.blocks[0][1].dtype, streamed.blocks[0][1].dtype) == (np.float32, np.float16)
    for left, right in zip(kept.search(queries, 7), streamed.search(queries, 7), strict=True):
        np.testing.assert_array_equal(left, right)


def test_hidden_rows_are_not_found_and_few_rows_are_all_found():
    random = np.random.RandomState(0)
    rows, queries = normalised(random.randn(50, 8)), normalised(random.randn(3, 8))
    hidden = np.arange(0, 50, 2)
    _, found = ExactSearch([rows], hidden).search(queries, 10)
    np.testing.assert_array_equal(found, 2 * reference(queries, rows[1::2], 10)[1] + 1)
    _, everything = ExactSearch([rows], hidden).search(queries, 100)
    assert everything.shape == (3, 25)
    assert ExactSearch([rows]).search(queries[:0], 10)[1].shape == (0, 10)


def test_embeddings_of_zeros_are_like_nothing():
    assert not normalised(np.zeros((2, 4))).any()


def test_a_graph_finds_most_of_them():
    pytest.importorskip("usearch")
    random = np.random.RandomState(0)
    rows, queries = normalised(random.randn(500, 16)), normalised(random.randn(20, 16))
    graph = new_graph(16)
    graph.add(np.arange(500), rows.astype(np.float16))
    scores, found = GraphSearch(graph, np.array([3, 4])).search(queries, 10)
    expected, order = ExactSearch([rows], np.array([3, 4])).search(queries, 10)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, order, strict=True)]) > 9
    assert np.abs(scores - expected).mean() < 0.01
    assert not set(found.ravel().tolist()) & {3, 4}


# --- an index of a folder ---


@pytest.fixture
def indexed(classifier, workdir, library, tmp_path):
    with pytest.warns(UserWarning, match=r"1 files are left out: .*broken.png \(not an image\)"):
        cj.build_index(classifier, library, tmp_path / "index", workdir=workdir, progress=False)
    return tmp_path / "index"


def files_of(index):
    return [item["path"] for item in index.items]


def test_an_index_holds_the_embeddings_of_a_folder(classifier, library, indexed):
    index = cj.load_index(indexed)
    assert len(index) == 40
    paths = [path for path in map(str, sorted(library.rglob("*.png"))) if "broken" not in path]
    assert files_of(index) == paths
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    (part,) = index.embeddings
    assert part.dtype == np.float16
    np.testing.assert_allclose(part, normalised(classifier.embeddings(images)), atol=2e-3)
    assert not list(indexed.parent.glob(".*"))  # nothing is left beside it


def test_a_query_finds_itself_first_and_its_likes(classifier, library, indexed):
    index = cj.load_index(indexed)
    answers = cj.find_similar(index, classifier, [str(library)], top=40)
    assert len(answers) == 41
    (broken,) = [answer for answer in answers if answer.error]
    assert (broken.error, broken.neighbours) == ("not an image", ())
    hits = []
    for answer in answers:
        # An image of which no unit of the last layer is active is like nothing, not even itself.
        if not answer.error and classifier.embeddings(np.asarray(Image.open(answer.path))[None]).any():
            own = {each.item["path"]: each.similarity for each in answer.neighbours}[answer.path]
            others = [each for each in answer.neighbours if each.item["path"] != answer.path]
            assert own == pytest.approx(answer.neighbours[0].similarity, abs=1e-3) == pytest.approx(1, abs=1e-3)
            similarities = [each.similarity for each in answer.neighbours]
            assert similarities == sorted(similarities, reverse=True)
            hits += [Path(each.item["path"]).parent.name == Path(answer.path).parent.name for each in others[:4]]
    assert len(hits) > 80
    assert np.mean(hits) > 0.6  # by chance 0.25


def test_an_index_grows_without_computing_again(classifier, library, indexed, monkeypatch):
    embedded: list[int] = []
    original = type(classifier).embeddings

    def counted(self, images):
        embedded.append(len(images))
        return original(self, images)

    monkeypatch.setattr(type(classifier), "embeddings", counted)
    (library / "class 0" / "broken.png").unlink()
    built = cj.build_index(classifier, library, indexed, add=True, progress=False)
    assert (built.added, built.kept, embedded) == (0, 40, [])
    parts = {path: path.read_bytes() for path in indexed.glob("*-0000.*")}

    Image.fromarray(DATA["train"].images[0]).save(library / "new.png")
    changed = sorted((library / "class 1").glob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    os.utime(changed, ns=(1, 1))
    built = cj.build_index(classifier, library, indexed, add=True, progress=False)
    assert (built.added, built.kept, embedded) == (2, 39, [2])
    assert {path: path.read_bytes() for path in indexed.glob("*-0000.*")} == parts
    assert len(built.index) == 41
    (answer,) = cj.find_similar(built.index, classifier, [str(changed)], top=41)
    found = [each.item["path"] for each in answer.neighbours]
    assert found[0] == str(changed)
    assert answer.neighbours[0].similarity == pytest.approx(1, abs=1e-3)
    assert len(found) == len(set(found)) == 41


def test_a_second_folder_and_a_split_are_added(classifier, workdir, library, tmp_path, monkeypatch):
    shutil.copytree(library, tmp_path / "more")
    (tmp_path / "more" / "class 0" / "broken.png").unlink()
    index = cj.build_index(classifier, tmp_path / "more", tmp_path / "index", progress=False).index
    assert len(index) == 40
    from cifar_jax.inference import similar

    monkeypatch.setattr(similar, "load_split", lambda data, split, *rest, **more: DATA[split])
    built = cj.build_index(classifier, "test", tmp_path / "index", add=True, progress=False)
    assert (built.added, len(built.index)) == (40, 80)
    assert built.index.items[-1]["path"] == "test/39"
    assert cj.build_index(classifier, "test", tmp_path / "index", add=True, progress=False).added == 0
    answers = cj.find_similar(built.index, classifier, [str(tmp_path / "more" / "class 0")], top=2)
    for answer in answers:  # the same image, once as a file and once in the split
        assert {each.similarity for each in answer.neighbours} == {answer.neighbours[0].similarity}
        assert [each.item.get("split") for each in answer.neighbours] == [None, "test"]
    sheet = sheet_of(answers, classifier)
    assert Image.open(io.BytesIO(sheet)).format == "PNG"
    monkeypatch.setattr(similar, "load_split", lambda data, split, *rest, **more: DATA["train"])
    with pytest.raises(cj.InputError, match="the index holds split 'test' with digest"):
        cj.build_index(classifier, "test", tmp_path / "index", add=True, progress=False)


def test_a_graph_grows_with_its_index(classifier, library, tmp_path):
    pytest.importorskip("usearch")
    (library / "class 0" / "broken.png").unlink()
    out = tmp_path / "index"
    cj.build_index(classifier, library / "class 0", out, approximate=True, progress=False)
    index = cj.build_index(classifier, library, out, add=True, progress=False).index
    assert len(index.graph.graph) == 40
    assert len(list(out.glob("*.usearch"))) == 1
    for answer in cj.find_similar(index, classifier, [str(library)], top=1):
        assert answer.neighbours[0].similarity == pytest.approx(1, abs=2e-3)
    assert cj.find_similar(index, classifier, [str(library)], top=3, exact=True)


# --- what is wrong ---


def test_another_model_is_refused(indexed, other_workdir, library):
    other = cj.load_classifier(other_workdir)
    with pytest.raises(cj.InputError, match="was made by another model"):
        cj.find_similar(cj.load_index(indexed), other, [str(library)])
    with pytest.raises(cj.InputError, match="was made by another model"):
        cj.build_index(other, library, indexed, add=True, progress=False)


def test_an_output_that_exists_is_refused(classifier, library, indexed, tmp_path):
    before = {path.name: path.read_bytes() for path in indexed.iterdir()}
    with pytest.raises(cj.InputError, match=r"holds an index; add new images with --add, replace it with --force"):
        cj.build_index(classifier, library, indexed, progress=False)
    with pytest.raises(cj.InputError, match="give one of them"):
        cj.build_index(classifier, library, indexed, add=True, force=True, progress=False)
    with pytest.raises(cj.InputError, match="exists and is no index"):
        cj.build_index(classifier, library, library, force=True, progress=False)
    with pytest.raises(cj.InputError, match="does not exist"):
        cj.build_index(classifier, tmp_path / "gone", indexed, force=True, progress=False)
    assert {path.name: path.read_bytes() for path in indexed.iterdir()} == before
    built = cj.build_index(classifier, library / "class 1", indexed, force=True, progress=False)
    assert len(built.index) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "index"}


def test_an_interrupted_call_leaves_no_index(classifier, library, tmp_path, monkeypatch):
    from cifar_jax.inference import similar

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(similar, "write_record", stop)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="left out"):
        cj.build_index(classifier, library, tmp_path / "index", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}
    monkeypatch.undo()
    (tmp_path / ".index.writing").mkdir()  # what a kill leaves
    (tmp_path / ".index.writing" / "embeddings-0007.npy").write_bytes(b"half")
    cj.build_index(classifier, library / "class 1", tmp_path / "index", progress=False)
    assert not (tmp_path / "index" / "embeddings-0007.npy").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "index"}


def test_damage_is_found(indexed, tmp_path):
    with pytest.raises(cj.InputError, match="holds no index"):
        cj.load_index(tmp_path)
    for name in ("embeddings-0000.npy", "items-0000.jsonl"):
        content = (indexed / name).read_bytes()
        (indexed / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(cj.InputError, match=f"{name} is damaged; make the index again with --force"):
            cj.load_index(indexed)
        (indexed / name).unlink()
        with pytest.raises(cj.InputError, match=f"{name} is missing"):
            cj.load_index(indexed)
        (indexed / name).write_bytes(content)
    record = json.loads((indexed / "index.json").read_text())
    (indexed / "index.json").write_text(json.dumps(record | {"model": "0"}))
    with pytest.raises(cj.InputError, match=r"index.json is damaged"):
        cj.load_index(indexed)
    (indexed / "index.json").write_text(json.dumps(record | {"format": 9}))
    with pytest.raises(cj.InputError, match="an index of format 9, and this version reads 1"):
        cj.load_index(indexed)


def test_folders_without_readable_images_and_odd_numbers(classifier, library, indexed, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(cj.InputError, match="none of the images in"), pytest.warns(UserWarning, match="left out"):
        cj.build_index(classifier, tmp_path / "bad", tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(cj.InputError, match="--top=0 asks for no image"):
        cj.find_similar(cj.load_index(indexed), classifier, [str(library)], top=0)


def test_a_missing_library_is_answered_with_its_command(classifier, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(cj.InputError, match=r"pip install -c constraints.txt -e '.\[similar\]'"):
        cj.build_index(classifier, library, tmp_path / "index", approximate=True, progress=False)
    assert not (tmp_path / "index").exists()


# --- the commands ---


def test_the_commands_answer_in_a_table_in_json_and_with_a_sheet(workdir, library, tmp_path, capsys):
    (library / "class 0" / "broken.png").unlink()
    index, sheet = tmp_path / "index", tmp_path / "sheet.png"
    assert cli.main(["index", str(library), f"--workdir={workdir}", f"--out={index}"]) == 0
    assert "40 images added; 40 in" in capsys.readouterr().out
    queries = sorted(map(str, (library / "class 2").glob("*.png")))
    command = ["similar", *queries, f"--index={index}", "--top=3"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::4] == queries
    found = [line.split(maxsplit=1) for line in lines[1::4]]
    assert [path for _, path in found] == queries
    assert all(float(similarity) > 0.999 for similarity, _ in found)  # the index rounds to 16 bits
    command += [f"--sheet={sheet}", "--format=json"]
    assert cli.main(command) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["query"] for answer in answers] == queries
    assert all(answer["neighbours"][0]["path"] == answer["query"] for answer in answers)
    image = Image.open(sheet)
    assert image.size[0] > 4 * 112
    assert image.size[1] > 10 * 112
    assert cli.main(command) == 2
    assert "exists; replace it with --force" in capsys.readouterr().err
    assert cli.main(["index", str(library), f"--workdir={workdir}", f"--out={index}"]) == 2
    assert cli.main(["similar", queries[0], f"--index={index}", "--format=xml"]) == 2
    assert "--format=xml is unknown; it is one of table, json" in capsys.readouterr().err
    assert cli.main(["similar", queries[0], f"--index={tmp_path}"]) == 2
    assert "holds no index" in capsys.readouterr().err
