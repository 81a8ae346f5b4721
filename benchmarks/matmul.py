"""Peak of fp32 matrix products in PyTorch here: ``python benchmarks/matmul.py REPORT``."""

import json
import sys
import time
from pathlib import Path

import torch

from research.files import write_whole

SIZE = 2048
SECONDS = 3.0


def peak_gflops() -> float:
    """The best product of two square matrices within some seconds, in 1e9 operations per second."""
    left, right = torch.rand(2, SIZE, SIZE)
    out = torch.empty(SIZE, SIZE)
    best_s, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * SIZE**3 / best_s / 1e9


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]), json.dumps({"gflops": peak_gflops()}))
