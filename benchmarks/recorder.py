"""What does recording training dynamics cost, as a share of the step?

    python benchmarks/recorder.py [--steps 8] [--rounds 5]

A bare training loop (forward, backward, SGD) over the same random batches, alternating in blocks
of steps with the same loop and `Recorder.record`; the order of the two changes every round.
`paired` is the median over rounds of (with - without) / without, with quartiles; where they are
wider than the cost, only the share tells: the recorder's own calls over the bare step. An epoch
ends with every block: `end_epoch` is part of the recorded time. On a CPU the clock is that of the
process's own work (one thread), on a GPU the wall's. Writes `records/recorder.json`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardsieve.train import Recorder
from shardsieve.train.nets import light, resnet18

RECORD = Path(__file__).parent / "records" / "recorder.json"
# Network, classes, pixels, batch: small images, and as many classes as ImageNet has.
CASES = [
    ("light", light, 10, 32, 128),
    ("light", light, 1000, 32, 128),
    ("resnet18", resnet18, 10, 32, 32),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [measure(*case, options.steps, options.rounds) for case in CASES]
    for row in rows:
        print(row)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    about = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device}
    about |= {"python": platform.python_version(), "torch": torch.__version__, **vars(options)}
    RECORD.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def measure(
    name: str, make: Any, classes: int, pixels: int, batch: int, steps: int, rounds: int
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make(classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    steps = steps if name == "light" else max(steps // 4, 2)
    recorder = Recorder(range(steps * batch), classes)
    images = torch.randn(4, batch, 3, pixels, pixels, device=device)
    labels = torch.randint(classes, (4, batch), device=device)

    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def loop(recorder: Recorder | None) -> float:
        begin = clock()
        for step in range(steps):
            logits = model(images[step % 4])
            loss = nn.functional.cross_entropy(logits, labels[step % 4])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recorder is not None:
                ids = torch.arange(step * batch, (step + 1) * batch)
                recorder.record(ids, logits, labels[step % 4])
        if recorder is not None:
            recorder.end_epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - begin

    loop(None), loop(recorder)
    shares, bare = [], []
    for turn in range(rounds):
        seconds = {one: loop(recorder if one else None) for one in (turn % 2, 1 - turn % 2)}
        shares.append(100 * (seconds[1] - seconds[0]) / seconds[0])
        bare.append(1000 * seconds[0] / steps)
    quartiles = [round(q, 2) for q in statistics.quantiles(shares, n=4)]
    case = {"network": name, "classes": classes, "pixels": pixels, "batch": batch, "steps": steps}
    step = statistics.median(bare)
    alone = record_alone(recorder, labels, classes, batch, steps, clock)
    return {
        **case,
        "bare_step_ms": round(step, 2),
        "record_ms_per_step": round(alone, 3),
        "share_percent": round(100 * alone / step, 2),
        "paired_percent": quartiles[1],
        "paired_quartiles": [quartiles[0], quartiles[2]],
    }


def record_alone(
    recorder: Recorder,
    labels: torch.Tensor,
    classes: int,
    batch: int,
    steps: int,
    clock: Callable[[], float],
) -> float:
    """Milliseconds per step of the recorder's calls alone, with the epoch's end: less noise."""
    logits, times = torch.randn(batch, classes, device=labels.device), []
    for _ in range(5):
        begin = clock()
        for step in range(steps):
            recorder.record(
                torch.arange(step * batch, (step + 1) * batch), logits, labels[step % 4]
            )
        recorder.end_epoch()
        times.append(1000 * (clock() - begin) / steps)
    return statistics.median(times)


if __name__ == "__main__":
    main()
