"""The Markdown tables over the measurements in results/, one a kind: `python benchmarks/report.py` writes them anew."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
FORMS, GPU_FORMS = ("plain", "fast"), ("eager", "compiled")


def write_tables(results: Path) -> None:
    """results/against_torch.md from every step_, gpu_, epochs_ and inference_*.json there."""
    everything = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    records = [record for record in everything if "what" in record]  # others hold speedruns, tables and growth
    parts = []
    for title, chosen, columns in TABLES:
        rows = [record for record in records if chosen(record)]
        if rows:
            lines = [[*columns], ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
            table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
            parts.append(f"## {title}\n\n{note(rows)}\n\n{table}\n")
    (results / "against_torch.md").write_text("\n".join(parts))


def note(records: list[Record]) -> str:
    machines = {record.get("gpu", f"{record['cores']} cores of {record['cpu']}") for record in records}
    sides = [side for record in records for side in record["sides"].values()]
    versions = {f"{name} {side[name]}" for side in sides for name in ("jax", "torch") if name in side}
    return (
        f"{'; '.join(sorted(machines))}; {', '.join(sorted(versions))}. Medians; ratios with their least and greatest."
    )


def network(record: Record) -> str:
    return f"{record['setting']['model']['name']}, {record['setting']['batch_size']}"


def compared(form: str) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        figures = record["ratios"][form]
        return f"**{figures['median']:.2f}** ({figures['min']:.2f} to {figures['max']:.2f})"

    return cell


def step_time(side: str) -> Callable[[Record], str]:
    return lambda record: f"{statistics.median(record['sides'][side]['step_ms']):.2f} ms"


def images_trained(side: str) -> Callable[[Record], str]:
    return lambda record: (
        f"{record['setting']['batch_size'] / statistics.median(record['sides'][side]['step_ms']) * 1e3:,.0f}"
    )


def turn_time(side: str) -> Callable[[Record], str]:
    return lambda record: f"{statistics.median(record['sides'][side]['step_ms']) * record['steps_a_turn'] / 1e3:.1f} s"


def images_a_second(side: str) -> Callable[[Record], str]:
    return lambda record: (
        f"{record['setting']['batch_size'] / statistics.median(record['sides'][side]['call_ms']) * 1e3:,.0f}"
    )


def latency(side: str) -> Callable[[Record], str]:
    return lambda record: f"{record['sides'][side]['median_ms']:.2f}, {record['sides'][side]['p95_ms']:.2f} ms"


def columns(
    time: Callable[[str], Callable[[Record], str]],
    sides: tuple[str, ...] = ("ours", *FORMS),
    forms: tuple[str, ...] = FORMS,
) -> Record:
    """The columns that every kind of measurement has, `time` a side's; `forms` are the sides that are PyTorch's."""
    named = {side: f"torch, {side}" if side in forms else side for side in sides}
    return {
        "network, batch": network,
        **{named[side]: time(side) for side in sides},
        **{f"ours ÷ {form}": compared(form) for form in forms},
        "n": lambda record: str(record["ratios"][forms[-1]]["n"]),
        "others' CPU": lambda record: f"{record['others_share_of_cpu']:.0%}",
        "date": lambda record: record["date"],
    }


PEAK = {
    "peak MiB (ours, fast)": lambda record: ", ".join(
        str(record["sides"][side]["peak_rss_mib"]) for side in ("ours", "fast")
    )
}
INFERENCE = ("ours", "program", *FORMS)  # "program" is ours on images that lie on the device


def is_inference(record: Record, one: bool) -> bool:
    return record["what"] == "inference" and (record["setting"]["batch_size"] == 1) == one


TABLES: list[tuple[str, Callable[[Record], bool], Record]] = [
    ("A training step", lambda record: record["what"] == "step", columns(step_time) | PEAK),
    (
        "Training on a GPU in bfloat16, images a second",
        lambda record: record["what"] == "gpu",
        columns(images_trained, ("ours", *GPU_FORMS), GPU_FORMS),
    ),
    (
        "Epochs on CIFAR-10",
        lambda record: record["what"] == "epochs",
        {"epochs": lambda record: str(record["epochs_a_turn"])} | columns(turn_time) | PEAK,
    ),
    ("Inference, images a second", lambda record: is_inference(record, one=False), columns(images_a_second, INFERENCE)),
    ("Inference of one image, median and 95th percentile", lambda record: is_inference(record, one=True),
     columns(latency, INFERENCE)),
]  # fmt: skip

if __name__ == "__main__":
    write_tables(Path(__file__).parent / "results")
