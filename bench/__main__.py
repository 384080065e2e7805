"""Run suites, print their tables, store their figures.

python -m bench                  everything, about fifteen minutes
python -m bench mlp latency      some suites
python -m bench --quick          short windows: does it work, roughly how fast
"""

import argparse
import os
import subprocess
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import machine, models, processes, suites
from bench.context import Context
from bench.load.closed import LoadError, tool
from bench.results import SuiteResult, store
from bench.verify import WrongAnswerError

HERE: Final = Path(__file__).parent
DATA_VARIABLE: Final = "HEADRACE_BENCH_DATA"


def main() -> int:
    """Exit status: 0 if every target was met, 1 if one was not or a suite failed."""
    chosen = _arguments()
    names = tuple(chosen.suites) or suites.NAMES
    started = datetime.now(UTC)
    before = machine.load_average()
    placement = machine.place()
    description = machine.describe()
    print(f"{description['processor']}, {description['cores']} cores; {placement.note}")
    print(f"load by {tool()}; load average {before:.2f}")

    results: dict[str, SuiteResult] = {}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as home:
        context = Context(
            placement=placement,
            home=Path(home),
            cache=HERE / "models",
            data=chosen.data,
            models=models.write_models(HERE / "models"),
            quick=chosen.quick,
        )
        for name in names:
            _run(name, context, results, failures)

    stamp = started.strftime("%Y%m%dT%H%M%SZ")
    document = {
        "started": started.isoformat(timespec="seconds"),
        "quick": chosen.quick,
        "machine": description,
        "placement": placement.note,
        "load_tool": tool(),
        "load_average": {"before": before, "after": machine.load_average()},
        "suites": {name: result.document() for name, result in results.items()},
        "failures": failures,
    }
    print(f"\nstored in {store(document, chosen.out, stamp)}")
    return _summary(results, failures)


def _run(
    name: str, context: Context, results: dict[str, SuiteResult], failures: dict[str, str]
) -> None:
    print(f"\n== {name}: {suites.question(name)}", flush=True)
    home = context.home / name
    home.mkdir()
    try:
        results[name] = suites.load((name,))[name](context.inside(home))
        print(results[name], flush=True)
    except (LoadError, WrongAnswerError, processes.StartError) as error:
        failures[name] = f"{type(error).__name__}: {error}"
        print(f"FAILED {failures[name]}", flush=True)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        failures[name] = f"{type(error).__name__}: {error}"
        print(f"FAILED {traceback.format_exc()}", flush=True)
    finally:
        if left := processes.stop_leftovers():
            print(f"note  had to kill: {', '.join(left)}")


def _summary(results: dict[str, SuiteResult], failures: dict[str, str]) -> int:
    targets = [target for result in results.values() for target in result.targets]
    met = sum(target.is_met for target in targets)
    print(f"{met} of {len(targets)} targets met, {len(failures)} suites failed")
    for target in targets:
        if not target.is_met:
            print(target)
    return 0 if met == len(targets) and not failures else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(suites.NAMES)}; default all")
    parser.add_argument("--quick", action="store_true", help="short windows, two rounds")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where JSON goes")
    given = os.environ.get(DATA_VARIABLE)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(given) if given else None,
        help=f"folder with sst2/ and stsb/ (or {DATA_VARIABLE}); without it lengths are built in",
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.suites) - set(suites.NAMES):
        parser.error(f"no suite named {', '.join(sorted(unknown))}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
