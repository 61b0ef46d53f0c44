"""The Markdown table over the measurements in results/: `python benchmarks/report.py` writes it anew."""

import json
import statistics
from pathlib import Path
from typing import Any

HEAD = [
    "what",
    "network, batch",
    "ours",
    "torch, plain",
    "torch, fast",
    "ours ÷ plain",
    "ours ÷ fast",
    "n",
    "peak MiB (ours, fast)",
    "others' CPU",
    "date",
]


def write_table(results: Path) -> None:
    """results/against_torch.md from every step_*.json and epochs_*.json there."""
    records = [
        json.loads(path.read_text()) for what in ("step", "epochs") for path in sorted(results.glob(f"{what}_*.json"))
    ]
    machines = {f"{record['cores']} cores of {record['cpu']}" for record in records}
    versions = {
        f"{name} {record['sides'][side][name]}"
        for record in records
        for side, name in (("ours", "jax"), ("fast", "torch"))
    }
    note = (
        f"{'; '.join(sorted(machines))}; {', '.join(sorted(versions))}. Medians; ratios with their least and greatest."
    )
    rows = [HEAD, ["---"] * len(HEAD), *map(row, records)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    (results / "against_torch.md").write_text(f"{note}\n\n{table}\n")


def row(record: dict[str, Any]) -> list[str]:
    sides, ratios, setting = record["sides"], record["ratios"], record["setting"]
    long = record["what"] == "epochs"

    def time(side: str) -> str:
        milliseconds = statistics.median(sides[side]["step_ms"])
        return f"{milliseconds * record['steps_a_turn'] / 1e3:.1f} s" if long else f"{milliseconds:.2f} ms"

    spread = lambda figures: f"**{figures['median']:.2f}** ({figures['min']:.2f} to {figures['max']:.2f})"
    return [
        f"{record['epochs_a_turn']} epoch(s)" if long else "step",
        f"{setting['model']['name']}, {setting['batch_size']}",
        *(time(side) for side in ("ours", "plain", "fast")),
        *(spread(ratios[side]) for side in ("plain", "fast")),
        str(ratios["fast"]["n"]),
        f"{sides['ours']['peak_rss_mib']}, {sides['fast']['peak_rss_mib']}",
        f"{record['others_share_of_cpu']:.0%}",
        record["date"],
    ]


if __name__ == "__main__":
    write_table(Path(__file__).parent / "results")
