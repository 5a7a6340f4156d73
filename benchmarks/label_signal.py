"""The phantom's label signal through the whole job, with and without: `make signal`.

Runs `fovea demo` at signal strengths 1 and 0 with two seeds each, and prints the probe's cross-validated balanced
accuracy by participant beside chance (0.25) and its permutation p-value.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def demo(signal: float, seed: int) -> dict[str, object]:
    """One demo; its machine-readable result."""
    out = ROOT / f"out/signal/{signal:g}-{seed}"
    words = ["fovea", "demo", "--out", str(out), "--signal", str(signal), "--seed", str(seed), "--json"]
    result = subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(result.stdout)
    return found


def main() -> None:
    """Print one row a run."""
    print(
        "| signal | seed | balanced accuracy, cross-validated | 95% interval | p (permutation) | intensity baseline |"
    )
    print("|---|---|---|---|---|---|")
    for signal in (1.0, 0.0):
        for seed in (0, 1):
            probe = demo(signal, seed)["probe"]
            assert isinstance(probe, dict)
            encoder, baseline = (found["cv"] for found in (probe["encoder"], probe["baselines"]["intensity"]))
            score = encoder["scores"]["balanced_accuracy"]["value"]
            interval = encoder["intervals"]["balanced_accuracy"]
            plain = baseline["scores"]["balanced_accuracy"]["value"]
            print(
                f"| {signal:g} | {seed} | {score:.2f} | {interval['low']:.2f} to {interval['high']:.2f} "
                f"| {encoder['null']['p_value']:.3f} | {plain:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
