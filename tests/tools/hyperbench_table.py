"""Print HyperBench's CSVs as the table of examples/hyperbench.md: python -m tests.tools.hyperbench_table CSV..."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

METRICS = {"RMSE": ".4f", "PSNR": ".2f", "SSIM": ".4f", "UIQI": ".4f", "ERGAS": ".2f", "SAM": ".2f"}


def main(names: list[str]) -> None:
    """Print a row a case, and in it a column for every metric of every method."""
    texts = [Path(name).read_text(encoding="utf-8") for name in names]
    rows = [row for text in texts for row in csv.DictReader(text.splitlines())]
    methods = list(dict.fromkeys(row["method_name"] for row in rows))
    cases: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = (row["scene_name"], row["downsampling_ratio"], row["msi_band_count"])
        if row["status"] != "success":  # their CSV then has its columns displaced
            raise SystemExit(f"{key}: {row['method_name']} failed, see HyperBench's log")
        cases.setdefault(key, {})[row["method_name"]] = row
    short = [method.removeprefix("spectralift-") for method in methods]
    head = [f"{metric} {short[0]}" if i == 0 else name
            for metric in METRICS for i, name in enumerate(short)]  # fmt: skip
    print("| scene | ratio | bands |", " | ".join(head), "|")
    print("|", " | ".join(["---"] * (3 + len(head))), "|")
    for key, found in cases.items():
        cells = [
            format(float(found[method][metric]), form) if method in found else ""
            for metric, form in METRICS.items()
            for method in methods
        ]
        print("|", " | ".join([*key, *cells]), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
