"""Mutation tests of the engine and of the rollout statistics, on a random sample.

mutmut changes functions ("mutants"), and the unit tests that reach a sampled mutant must fail.
Survivors are printed: a test is missing, or the change makes no difference.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
MUTMUT: Final = ROOT / ".venv" / "bin" / "mutmut"
PARTS: Final = ("engine", "rollout")
NOTICED: Final = {1, 3, 36, 24, -24, 152, 255}
"""Exit codes of mutmut's trials: a test failed, pytest broke, or the time was up."""
_NONE: Final = "headrace.none"

Results = dict[str, int | None]
"""The exit code by mutant; None where it was not tried."""


def main() -> int:
    """Test the sample; return 1 if too few mutants fail a test, or not all could be tested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="how many to try (300)")
    parser.add_argument("--seed", type=int, default=1, help="draws others (1)")
    parser.add_argument("--at-least", type=float, default=0.85, help="share to be noticed (0.85)")
    options = parser.parse_args()

    print("making mutants, and finding out which tests reach them: some minutes", flush=True)
    errors = _run("run", _NONE)  # matches none, which it calls an error; leaves all in mutants/
    mutants = sorted(_results())
    if not mutants:
        print(errors, file=sys.stderr)
    drawn = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))  # noqa: S311  # no secret
    print(f"trying {len(drawn)} of {len(mutants)}", flush=True)
    if drawn:
        _run("run", *drawn)
    results = _results()
    if not_tried := [name for name in drawn if results[name] is None]:
        print(f"{len(not_tried)} were not tried: `.venv/bin/mutmut run {not_tried[0]}` says why")
    for part in PARTS:
        noticed, tried = tally(part, drawn, results)
        print(f"{part}: {noticed} of {tried} noticed")
    for name in sorted(unnoticed(drawn, results)):
        print(f"\n{name}\n{_diff(name)}")
    tried = len(drawn) - len(not_tried)
    share = 1.0 - len(unnoticed(drawn, results)) / max(tried, 1)
    print(f"\n{share:.0%} of {tried} noticed")
    return 0 if tried and not not_tried and share >= options.at_least else 1


def tally(part: str, drawn: Iterable[str], results: Results) -> tuple[int, int]:
    """How many of a part's drawn mutants were noticed, and how many were tried."""
    tried = [results[name] for name in drawn if name.startswith(f"headrace.{part}.")]
    tried = [code for code in tried if code is not None]
    return sum(code in NOTICED for code in tried), len(tried)


def unnoticed(drawn: Iterable[str], results: Results) -> list[str]:
    """The mutants that were tried and that no test noticed, or no test reached."""
    return [n for n in drawn if results[n] is not None and results[n] not in NOTICED]


def _results() -> Results:
    results: Results = {}
    for part in PARTS:
        for path in (ROOT / "mutants" / "src" / "headrace" / part).glob("*.meta"):
            results |= json.loads(path.read_text())["exit_code_by_key"]
    return results


def _run(*arguments: str) -> str:
    """Run mutmut; return its stderr. Its stdout only shows progress."""
    command = [str(MUTMUT), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S603  # ours
    return done.stderr


def _diff(name: str) -> str:
    command = [str(MUTMUT), "show", name]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S603  # ours
    changed = [line for line in done.stdout.splitlines() if line[:1] in {"+", "-"}]
    return "\n".join(line for line in changed if line[:3] not in {"+++", "---"})


if __name__ == "__main__":
    sys.exit(main())
