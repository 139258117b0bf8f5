"""Kill processes of a run at random moments, restart with other numbers of them, and compare with an uninterrupted run.

    python benchmarks/kills.py --kills 20

Four, two and one processes of this machine take turns, eight CPU devices in all; each is SIGKILLed at a random moment.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import clusters
from tests.support.clusters import Cluster

COUNTS = (4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    overrides = ["--config=configs/pretrain.py:tiny", f"--config.steps={args.steps}", "--config.log_every=1"]
    overrides += ["--config.checkpoint.every_steps=5", "--config.data.sequence_length=64"]
    whole = Cluster(folder / "whole", 1, overrides)
    assert whole.wait(900) == [0], whole.log(0)[-2000:]
    expected = clusters.losses(folder / "whole")
    workdir = folder / "killed"
    workdir.mkdir()
    shutil.copytree(folder / "whole/demo", workdir / "demo")
    took, named, unmet, kills = [], 0, 0, 0
    for kills in range(1, args.kills + 1):
        count = COUNTS[kills % len(COUNTS)]
        cluster = Cluster(workdir, count, overrides)
        # Anywhere from its start to some steps beyond the last checkpoint.
        reached = max(clusters.losses(workdir) or {0: 0.0})
        if rng.random() < 0.75:
            cluster.wait_for_step(min(reached + rng.randint(1, 8), args.steps - 2))
        time.sleep(rng.uniform(0.0, 3.0))
        victim = rng.randrange(count)
        cluster.kill(victim)
        print(f"kill {kills}: process {victim} of {count} near step {reached}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            cluster.wait(60)
        except subprocess.TimeoutExpired:
            # Killed before all had met: JAX waits five minutes for it to appear, which is a launcher's business.
            unmet += 1
            cluster.stop()
            continue
        if count > 1:
            took.append(time.monotonic() - began)
            logs = [cluster.log(number) for number in range(count) if number != victim]
            named += any(clusters.names_process(log, victim) for log in logs)
            for log in logs:
                print("    " + (log.splitlines() or ["no output"])[-1][:160], file=sys.stderr, flush=True)
    last = Cluster(workdir, 1, overrides)
    assert last.wait(900) == [0], last.log(0)[-2000:]
    found = clusters.losses(workdir)
    assert list(found) == list(expected)
    apart = np.abs(np.subtract(list(found.values()), list(expected.values())))
    seconds_by_kind = json.loads((workdir / "goodput.json").read_text())["seconds"]
    print(f"{kills} kills over {args.steps} steps on 4, 2 and 1 processes")
    print(f"largest difference of a loss from the uninterrupted run: {apart.max():.2e}; equal in all digits: "
          f"{np.mean(apart == 0):.0%} of steps")  # fmt: skip
    print(f"the others ended after {np.median(took):.1f} s (at most {max(took):.1f} s); {named} of {len(took)} named "
          f"the process that was gone; {unmet} kills fell before all had met")  # fmt: skip
    print("seconds: " + ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in seconds_by_kind.items()))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
