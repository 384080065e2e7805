"""Measure Headrace beside other model servers; print tables, store figures, check promises.

python -m bench.peers                               every peer that can be installed, an hour
python -m bench.peers --peers mosec fastapi         some
python -m bench.peers --quick                       short windows: does it work, roughly how fast
python -m bench.peers --resume                      only what an earlier run did not come to
python -m bench.peers --page                        write docs/explain/peers.md from latest.json
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from bench import machine, wheel
from bench.context import Context
from bench.load.closed import tool
from bench.peers import catalog, goals, measure, models, page, store, suites, tables
from bench.peers.pair import Plan
from bench.peers.rows import Row

BENCH: Final = Path(__file__).parents[1]
QUICK_MODELS: Final = ("mlp", "minilm")
"""Each of the others takes starts of its own."""


def main() -> int:
    """Exit status: 1 if a promise that could be checked is broken, 2 if nothing was measured."""
    chosen = _arguments()
    if chosen.page:
        return _page(chosen.out)
    build = wheel.use()
    started = datetime.now(UTC)
    before = machine.load_average()
    placement = machine.place()
    description = machine.describe()
    print(f"{description['processor']}, {description['cores']} cores; {placement.note}")
    print(f"Headrace: {build}; load by {tool()}; load average {before:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hr-peers-") as home:
        context = Context(
            placement=placement,
            home=Path(home),
            cache=BENCH / "models",
            data=None,
            models={},
            quick=chosen.quick,
        )
        parts = _measure(chosen, context)
    kept = goals.targets(store.by_name(parts))
    run = store.Run(
        started=started.isoformat(timespec="seconds"),
        is_quick=chosen.quick,
        machine=description,
        build=build,
        placement=placement.note,
        load_tool=tool(),
        load_average={"before": before, "after": machine.load_average()},
        targets=[target.document() for target in kept],
        parts=parts,
    )
    path = store.write_run(run, chosen.out, started.strftime("%Y%m%dT%H%M%SZ"))
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode(run), indent=1).decode())
    print(f"\nstored in {path}; plots in {page.draw(run, chosen.out / 'plots')}")
    for part in parts:
        for step, why in part.failures.items():
            print(f"FAILED {part.name}, {step}: {why.splitlines()[0]}")
        if part.skipped:
            print(f"left out: {part.name}, {part.skipped}")
    for target in kept:
        print(target)
    print(f"{sum(target.is_met for target in kept)} of {len(kept)} targets met")
    if not any(part.rows for part in parts):
        return 2
    return 0 if all(target.is_met for target in kept) else 1


def _measure(chosen: argparse.Namespace, context: Context) -> list[store.Part]:
    plan = replace(Plan.of(quick=chosen.quick), max_batch=chosen.batch)
    choice = measure.Choice(
        suites=frozenset(chosen.suites),
        models=frozenset(chosen.models),
        out=chosen.out,
        resume=chosen.resume,
        report=_report,
    )
    parts = []
    for name in chosen.peers:
        print(f"\n== {catalog.PEERS[name].title}", flush=True)
        inside = _inside(context, name)
        parts.append(measure.measure_peer(catalog.PEERS[name], inside, plan, choice))
        print(f"{parts[-1].seconds:.0f} s", flush=True)
    if set(chosen.suites) & set(suites.ALONE):
        print("\n== Headrace alone", flush=True)
        parts.append(measure.measure_alone(_inside(context, "alone"), plan, choice))
        print(f"{parts[-1].seconds:.0f} s", flush=True)
    return parts


def _inside(context: Context, name: str) -> Context:
    home = context.home / name
    home.mkdir()
    return replace(context, home=home)


def _report(rows: Sequence[Row]) -> None:
    print(tables.terminal(rows), flush=True)


def _page(out: Path) -> int:
    latest = out / "latest.json"
    try:
        run = store.read_run(latest)
    except FileNotFoundError:
        print(f"there is no {latest}: run python -m bench.peers first", file=sys.stderr)
        return 2
    except msgspec.DecodeError as error:
        print(f"{latest} is of another version: {error}; measure again", file=sys.stderr)
        return 2
    print(f"wrote {page.write(run)}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for flag, names in (
        ("--peers", tuple(catalog.PEERS)),
        ("--models", models.NAMES),
        ("--suites", suites.NAMES),
    ):
        parser.add_argument(flag, nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="short windows, one round, two models")
    parser.add_argument("--resume", action="store_true", help="keep what --out has of such a run")
    parser.add_argument(
        "--batch",
        type=_positive,
        default=0,
        metavar="N",
        help=f"the peers' largest batch; by default {models.BATCHES}, or what does better of "
        f"{ {name: list(sizes) for name, sizes in models.TRIED.items()} }",
    )
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "peers")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON too")
    parser.add_argument("--page", action="store_true", help="write the page from latest.json")
    chosen = parser.parse_args()
    chosen.peers = chosen.peers or catalog.DEFAULT
    chosen.suites = chosen.suites or suites.NAMES
    chosen.models = chosen.models or (QUICK_MODELS if chosen.quick else models.NAMES)
    return chosen


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is no number of rows: 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return number


if __name__ == "__main__":
    sys.exit(main())
