"""Run a suite of measurements and write one JSON file and one Markdown table.

    python benchmarks/run.py --suite cpu                  # two cores: at most an hour
    python benchmarks/run.py --suite gpu                  # one GPU of 80 GiB or more: 8 minutes; see benchmarks/gpu.sh
    python benchmarks/run.py --suite tpu-plan             # compiler estimates; needs seed-jax[tpu], no TPU
    python benchmarks/run.py --suite gpu --scale tiny     # a rehearsal, on any device

Each measurement runs in a separate process with its own time budget, seed_jax and PyTorch in turns. Rows are appended
to `rows.jsonl` as they come, so that what was measured survives an interruption.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("seed_jax", "torch")
# Measurement -> share of the suite's time.
ITEMS = {"ceilings": 0.06, "attention": 0.08, "decode": 0.3, "train": 0.28, "encode": 0.12, "draw": 0.16}
CPU_ITEMS = ("ceilings", "train", "encode", "decode", "draw")
SECONDS = {"gpu": 480, "cpu": 3600, "tiny": 300}
PLANS = (  # config, topology
    ("pretrain_full:8b", "v5e:8x8"),
    ("pretrain_full:8b", "v6e:8x8"),
    ("pretrain_full:8b", "v5p:4x4x4"),
    ("pretrain:8b", "v5e:4x4"),
)
TINY_PLANS = (("pretrain:tiny", "cpu:8"),)
NOT_DETAILS = ("item", "side", "case", "unit", "value", "bytes", "plan")
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "diffusers", "peft", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, choices=("cpu", "gpu", "tpu-plan"))
    parser.add_argument("--scale", choices=("tiny", "cpu", "gpu"), help="sizes (default: the suite's)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="directory of the results")
    parser.add_argument("--seconds", type=float, help="time budget in all")
    parser.add_argument("--items", nargs="+", choices=tuple(ITEMS), help="only these measurements")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="only these implementations")
    args = parser.parse_args()
    if args.suite == "tpu-plan" and (args.items or args.sides or args.seconds):
        parser.error("the suite tpu-plan takes none of --items, --sides and --seconds")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    (args.out / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    rows = []
    with (args.out / "rows.jsonl").open("w") as file:
        for row in plan(args.scale) if args.suite == "tpu-plan" else measure(args, machine):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps({name: value for name, value in row.items() if name != "plan"}), flush=True)
    (args.out / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    table = markdown(machine, rows)
    (args.out / "results.md").write_text(table)
    print(table)
    return 0 if any(row.get("value") is not None for row in rows) else 1


def measure(args: argparse.Namespace, machine: dict) -> Iterator[dict]:
    """Run the measurements one after the other, both sides of each in turn, and yield their rows."""
    if args.suite == "gpu" and args.scale != "tiny" and not machine["gpu"]:
        print("run.py: the suite gpu needs an NVIDIA GPU: none found; --scale tiny rehearses it.", file=sys.stderr)
        sys.exit(2)
    scale = args.scale or args.suite
    total = args.seconds or SECONDS[scale]
    names = args.items or [name for name in ITEMS if args.suite == "gpu" or name in CPU_ITEMS]
    sides = args.sides or SIDES
    weight, end = sum(ITEMS[name] for name in names), time.monotonic() + total
    for name in names:
        for side in sides:
            limit = min(total * ITEMS[name] / weight / len(sides) * 1.3, end - time.monotonic())
            for row in run_item(name, side, scale, limit):
                yield {"item": name, "side": side, **row}


def run_item(name: str, side: str, scale: str, limit: float) -> Iterator[dict]:
    """Yield the rows that a measurement prints, until it ends or its time is over."""
    if limit < 5:
        yield {"case": "all", "value": None, "note": "no time left"}
        return
    command = [sys.executable, "-m", f"benchmarks.items.{name}", "--side", side, "--scale", scale]
    command += ["--seconds", str(0.7 * limit)]
    # JAX's own allocation leaves room for nothing else; the processes run one at a time.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads meanwhile would block the process
        process = subprocess.Popen(
            ["timeout", "--kill-after=5", str(limit), *command],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if code := process.wait():
            errors.seek(0)
            reason = "time is over" if code in (124, 137) else _last_line(errors.read(), code)
            yield {"case": "all", "value": None, "note": reason}


def plan(scale: str | None) -> Iterator[dict]:
    """Plan training steps with the TPU compiler."""
    for config, topology in TINY_PLANS if scale == "tiny" else PLANS:
        command = [sys.executable, "-m", "seed_jax.cli", "plan", "--config", config, "--topology", topology, "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        row = {"item": "plan", "side": "seed_jax", "case": f"{config} on {topology}", "unit": "s"}
        planned = json.loads(done.stdout) if done.stdout else None
        if planned is None:
            yield {**row, "value": None, "note": _last_line(done.stderr, done.returncode)}
        elif planned["time"] is None:  # exit code 1
            yield {**row, "value": None, "note": "does not fit", "plan": planned}
        else:
            peak, mfu = planned["memory"]["peak"] / 2**30, planned["mfu"]
            yield {**row, "value": planned["time"]["step"], "peak_gib": peak, "mfu": mfu, "plan": planned}


def _last_line(text: str, code: int) -> str:
    return (text.strip().splitlines() or [f"exit code {code}"])[-1][:300]


def describe_machine() -> dict:
    """Return what the figures depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown",
        "processor": _cpu_field("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in _cpu_field("flags").split()],
        "gpu": _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def markdown(machine: dict, rows: list[dict]) -> str:
    """Return the table, with the figures of seed_jax and PyTorch beside each other."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    device = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, {' '.join(machine['instructions'])}"
    lines = [
        f"{machine['date']}, commit {machine['commit']}, {device}; Python {machine['python']}, {versions}", "",
        "| measurement | case | unit | seed_jax | PyTorch | ratio | details |",
        "|---|---|---|---:|---:|---:|---|",
    ]  # fmt: skip
    cases: dict[tuple, dict] = {}
    for row in rows:
        cases.setdefault((row["item"], row["case"], row.get("unit", "")), {})[row["side"]] = row
    bandwidth = next((r["value"] for r in rows if r["case"] == "read and write" and r["side"] == "seed_jax"), None)
    for (item, case, unit), sides in cases.items():
        ours, theirs = (sides.get(side, {}).get("value") for side in ("seed_jax", "torch"))
        ratio = ""
        if ours and theirs:
            ratio = f"{theirs / ours if unit in ('ms', 's', 's/image') else ours / theirs:.2f}x"
        lines.append(
            f"| {item} | {case} | {unit} | {_figure(ours)} | {_figure(theirs)} | {ratio} "
            f"| {_details(sides, bandwidth)} |"
        )
    return "\n".join(lines) + "\n\nRatio: how many times as fast seed_jax is.\n"


def _details(sides: dict[str, dict], bandwidth: float | None) -> str:
    parts = []
    for side, row in sides.items():
        kept = {name: _figure(value) for name, value in row.items() if name not in NOT_DETAILS and value is not None}
        if bandwidth and side == "seed_jax" and "gb_per_s" in row:
            kept["share of bandwidth"] = f"{row['gb_per_s'] / bandwidth:.0%}"
        if kept:
            parts.append(f"{side}: " + ", ".join(f"{name} {value}" for name, value in kept.items()))
    return "; ".join(parts).replace("|", "/")


def _figure(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
