"""Everything the command line prints: reports as tables or JSON, warnings, and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..progress import Progress
from ..rank.analysis import nothing_cancels
from ..sentence import printable, singular

Report = dict[str, Any]


# Showing it


@contextlib.contextmanager
def bar(what: str) -> Iterator[Progress | None]:
    """A progress bar on stderr; where no terminal is, a line every ten seconds, so that logs show that it goes on."""
    if not sys.stderr.isatty():
        with _lines(what) as progress:
            yield progress
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(desc=what, unit=" modules", leave=False, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


EVERY = 10.0  # seconds between two lines


@contextlib.contextmanager
def _lines(what: str) -> Iterator[Progress]:
    """Show on stderr how far the work has come. A thread does it: one large module can take minutes."""
    started, ended = time.monotonic(), threading.Event()
    so_far: list[int] = []

    def tell() -> None:
        while not ended.wait(EVERY):
            done = f"{so_far[0]} of {so_far[1]} modules, " if so_far else ""
            sys.stderr.write(f"difflora: {what}: {done}{time.monotonic() - started:.0f} s\n")
            sys.stderr.flush()

    def show(done: int, total: int) -> None:
        so_far[:] = done, total

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield show
    finally:
        ended.set()
        teller.join()


def finish(given: argparse.Namespace, report: Report, started: float) -> int:
    report["seconds"] = round(time.perf_counter() - started, 3)
    if given.json:
        print_json(report)
        return 0
    print_report(report)
    for note in report["notes"]:
        sys.stderr.write(f"difflora: note: {note}\n")
    warn(report["warnings"])
    return 0


def finish_twins(given: argparse.Namespace, reports: dict[str, Report], mix_ups: list[str], started: float) -> int:
    if given.json:
        print_json({**reports, "warnings": mix_ups, "seconds": round(time.perf_counter() - started, 3)})
    else:
        for report in reports.values():
            print_report(report)
        warn(mix_ups)
    for noise, report in reports.items():
        warn(f"{noise} noise: {line}" for line in report["warnings"])
    return 0


def print_report(report: Report) -> None:
    sys.stdout.write(
        f"wrote {printable(report['output'], 400)}  ({size_text(report['bytes'])}, {report['seconds']:.1f} s)\n"
    )
    written = (
        f"{report['matrices']} at rank {rank_words(report['rank'])}, {report['dtype']}, {report['dialect']} key names"
    )
    if report["vectors"]:
        written += f"; {report['vectors']} biases, norms or tables"
    rows = [("modules", written)]
    if report.get("read_by_comfyui") is not None:
        modules = report["matrices"] + report["vectors"]
        rows.append(("read by ComfyUI", f"{report['read_by_comfyui']} of {modules}"))
    rows += [("skipped", f"{listed(line['modules'])}: {line['why']}") for line in report.get("skipped", [])]
    rows += [
        ("zero on one side", f"{listed(line['modules'])}: {line['why']}")
        for line in report.get("kept_from_one_side", [])
    ]
    for key, title, text in (
        ("retained_energy", "retained energy", "{:.2%}"),
        ("cosine", "cosine of A and B", "{:.4f}"),
        ("share_gone", "taken out", "{:.1%} of the slider"),
        ("unit", "strength 1 is", "{}"),
        ("by_qr", "slow path", "{} modules, by QR"),
        ("recipe", "recipe", "{}"),
    ):
        if report.get(key) is not None:
            rows.append((title, text.format(report[key])))
    if report.get("cancelled") is not None:
        rows.append(("cancelled", cancelled_text(report["cancelled"])))
    if report.get("untouched"):
        rows.append(("left alone", f"{report['untouched']} modules that the others do not have"))
    if report.get("stored_in_full"):
        excess = report["stored_in_full"]
        rows.append(
            (
                "stored in full",
                f"{listed(list(excess))}: approximated, the error at most "
                f"{max(excess.values()):.2%} above the smallest possible",
            )
        )
    if report.get("scale", 1.0) != 1.0:
        rows.append(("scaled by", f"{report['scale']:.6g}"))
    if report.get("identical"):
        rows.append(("tensors", "bit for bit those of the original"))
    print_table(rows)
    if "blocks" in report:
        print_groups(report["blocks"], "block")


def print_json(report: Mapping[str, Any]) -> None:
    for note in report.get("notes", []):
        sys.stderr.write(f"difflora: note: {note}\n")
    warn(report.get("warnings", []))
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        sys.stdout.write(f"  {title:<{width}}  {singular(text)}\n")


def print_groups(groups: Mapping[str, Mapping[str, float]], title: str) -> None:
    width = max(len(title), *(len(group) for group in groups)) if groups else len(title)
    sys.stdout.write(f"\n  {title:<{width}}  modules  norm A    norm B    norm A-B  cosine  cancelled  energy at 4\n")
    for group, one in groups.items():
        cancelled = "nothing" if nothing_cancels(one["cancelled"]) else f"{one['cancelled']:.1%}"
        sys.stdout.write(
            f"  {group:<{width}}  {one['modules']:>7}  {one['norm_a']:<8.4g}  {one['norm_b']:<8.4g}  "
            f"{one['norm']:<8.4g}  {one['cosine']:>6.3f}  {cancelled:>9}  {one['energy_rank_4']:>11.1%}\n"
        )


def cancelled_text(share: float) -> str:
    if nothing_cancels(share):
        return "nothing: the two point in opposite directions"
    return f"{share:.1%} of both sides' energy"


def warn(warnings: Iterable[str]) -> None:
    for line in dict.fromkeys(warnings):
        sys.stderr.write(f"difflora: warning: {line}\n")


def listed(modules: Sequence[str], most: int = 3) -> str:
    if len(modules) <= most:
        return ", ".join(printable(name) for name in modules)
    return f"{len(modules)} modules ({', '.join(printable(name) for name in modules[:most])}, …)"


def rank_words(rank: int | Sequence[int] | None) -> str:
    """A rank of a report, or the lowest and the highest."""
    return "-" if rank is None else str(rank) if isinstance(rank, int) else " to ".join(map(str, rank))


def size_text(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size_next = size / 1000
        size = size_next  # type: ignore[assignment]
    return f"{size:.3g} GB"
