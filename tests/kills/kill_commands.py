"""Kills commands of llmft (SIGKILL) at random moments, follows their hints, and compares the end with an uninterrupted one.

    python tests/kills/kill_commands.py --train 50 --merge 20 --eval 10 --prepare 10 --seed 0

The numbers are kills. Of train, some hit the start of --overwrite and --continue, checkpoint writes, evaluations, and a
resumed training. It exits with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# Read when the libraries are imported. Only a single thread adds numbers in the same order on a busy machine, too.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ.update(ENVIRONMENT, NO_COLOR="1", COLUMNS="80")
sys.path.insert(0, str(Path(__file__).parent))

from commands import load_libraries  # noqa: E402
from lab import Lab  # noqa: E402
from trials import KINDS, Tally, attempt  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for command in KINDS:
        parser.add_argument(f"--{command}", type=int, default=0, metavar="<kills>")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    load_libraries()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        lab = Lab(Path(folder))
        for command in KINDS:
            number = kills = 0
            while kills < getattr(given, command):
                kills += attempt(lab, command, number, given.seed, tally)
                number += 1
    show(tally, time.monotonic() - started)
    return 1 if tally.failures else 0


def show(tally: Tally, seconds: float) -> None:
    tables = {"kills": tally.kills, "moments": tally.moments, "refusals": tally.refusals, "ends": tally.ways}
    for title, counts in tables.items():
        print(f"{title}:")
        for name, count in sorted(counts.items()):
            print(f"  {count:4}  {name}")
    print(
        f"{sum(tally.kills.values())} kills of {tally.commands} commands in {tally.trials} trials: "
        f"{tally.identical} ended as without a kill, {len(tally.failures)} did not; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
