"""Plots of comparisons: which are drawn, what is in them, and what is refused."""

import json
import sys
import warnings
from dataclasses import replace

import pytest

import cifar_jax as cj
from cifar_jax.reports import plots
from cifar_jax.studies.compare import compare
from cifar_jax.studies.records import RunRecord


def record(folder, seed, accuracy, **fields):
    return RunRecord(str(folder), {"seed": seed, **fields}, {"validation_accuracy": accuracy})


def grid(tmp_path, rates=(0.1, 0.2), widths=(8, 16, 32), seeds=3):
    """Runs with histories of three epochs, which end at their accuracy."""
    runs = []
    for rate in rates:
        for width in widths:
            for seed in range(seeds):
                folder = tmp_path / f"{rate}-{width}-{seed}"
                folder.mkdir()
                accuracy = 0.5 + width / 100 + rate / 10 + seed / 1000
                lines = [{"epoch": epoch, "validation_accuracy": accuracy * epoch / 3} for epoch in (1, 2, 3)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                runs.append(record(folder, seed, accuracy, **{"optimizer.learning_rate": rate, "model.width": width}))
    return runs


def test_a_grid_has_a_plot_for_each_axis(tmp_path):
    comparison = compare(grid(tmp_path))
    written = plots.draw(comparison, tmp_path / "plots")
    names = {"arms", "differences", "axis_optimizer.learning_rate", "axis_model.width", "curves"}
    assert {path.name for path in written} == {f"{name}.{form}" for name in names for form in ("png", "svg")}
    assert all(path.read_bytes()[1:4] == b"PNG" for path in written if path.suffix == ".png")
    assert "<svg" in (tmp_path / "plots" / "arms.svg").read_text()
    assert plots.grid_axes(comparison) == {"model.width": [8, 16, 32], "optimizer.learning_rate": [0.1, 0.2]}


def test_arms_that_are_no_grid_have_no_axes(tmp_path):
    runs = grid(tmp_path)
    comparison = compare(
        [run for run in runs if run.recipe["model.width"] == 8 or run.recipe["optimizer.learning_rate"] == 0.1]
    )
    assert plots.grid_axes(comparison) == {}
    assert {path.stem for path in plots.draw(comparison, tmp_path / "plots")} == {"arms", "differences", "curves"}


def test_the_points_are_the_figures_of_the_table(tmp_path):
    comparison = compare(grid(tmp_path))
    axes = plots.arms_figure(comparison).axes[0]
    shown = [
        sorted(collection.get_offsets()[:, 0]) for collection in axes.collections if len(collection.get_offsets()) == 3
    ]
    assert shown == [pytest.approx(sorted(100 * value for value in row.values.values())) for row in comparison.rows]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert means == pytest.approx([100 * row.summary.mean for row in comparison.rows])
    axes = plots.differences_figure(comparison).axes[0]
    shown = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert shown == pytest.approx([100 * row.paired.difference for row in comparison.rows[1:]])
    curves = plots.curves_figure(comparison).axes[0]
    assert curves.lines[0].get_ydata()[-1] == pytest.approx(100 * comparison.rows[0].summary.mean)


def test_long_names_leave_room_for_what_they_name(tmp_path):
    """Runs of two studies differ in many fields, and their names with them."""
    comparison = compare(grid(tmp_path))
    rows = [replace(row, name=", ".join(f"field{number}={row.name}" for number in range(9))) for row in comparison.rows]
    comparison = replace(comparison, rows=tuple(rows), base=rows[0].name)
    for draw in (plots.arms_figure, plots.differences_figure, plots.curves_figure):
        figure = draw(comparison)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns where the axes would have no room
            figure.draw_without_rendering()
        (axes,), (width, height) = figure.axes, figure.get_size_inches() * figure.dpi
        assert axes.get_position().width > 0.4
        named = axes.get_legend().get_texts() if axes.get_legend() else axes.get_yticklabels()
        boxes = [text.get_window_extent() for text in (axes.xaxis.label, *named)]
        assert all(box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1 for box in boxes)


def test_runs_without_a_history_have_no_curves(tmp_path):
    runs = [record(tmp_path / str(seed), seed, 0.5 + seed / 100, epochs=3) for seed in range(3)]
    assert plots.curves_figure(compare(runs)) is None


def test_a_missing_library_and_a_folder_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    comparison = compare(grid(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(cj.InputError, match=r"the plots cannot be written to '.*file'"):
        plots.draw(comparison, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(cj.InputError, match=r"plots need matplotlib.*pip install -c constraints.txt -e '.\[report\]'"):
        plots.draw(comparison, tmp_path / "plots")
