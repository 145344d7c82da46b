"""On an NVIDIA GPU: `gpu-check --wait` while another process uses the GPU. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import pytest

from llmft_cli.gpu.gpus import list_gpus

if TYPE_CHECKING:
    from programs import Start

pytestmark = pytest.mark.gpu

LLMFT = [sys.executable, "-m", "llmft_cli"]
# One card, whichever others there are, and the same one for nvidia-smi and for CUDA.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# Both stay alive on the card, with a context and nothing else, until their second line of input.
HOLDS_MEMORY = """
held = torch.empty(torch.cuda.mem_get_info()[0] * 9 // 10, dtype=torch.uint8, device="cuda").fill_(1)
torch.cuda.synchronize()
print("busy", flush=True)
sys.stdin.readline()
del held
torch.cuda.empty_cache()
print("idle", flush=True)
sys.stdin.readline()
"""
COMPUTES = """
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
matrix = torch.randn(4096, 4096, device="cuda")
print("busy", flush=True)
while not stop.is_set():
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
print("idle", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("program", [HOLDS_MEMORY, COMPUTES], ids=["memory", "load"])
def test_the_wait_ends_when_the_card_is_free_and_not_before(program: str, start: Start) -> None:
    total = list_gpus().gpus[0].memory_total_bytes
    assert total is not None
    half = f"{total // 2**21}MiB"
    holder = start([sys.executable, "-c", f"import sys, threading, torch\n{program}"], ENVIRONMENT)
    assert holder.says(holder.out) == "busy\n", holder.err.said()
    time.sleep(2)  # the load that nvidia-smi shows is that of the last second
    waiting = start([*LLMFT, "gpu-check", "--wait", "2m", "--min-free", half, "--max-load", "10%"], ENVIRONMENT)
    line = waiting.says(waiting.err)
    assert line.startswith("waiting for 1 GPU with "), line
    time.sleep(6)
    assert waiting.is_running()
    holder.is_told("be idle")
    assert holder.says(holder.out) == "idle\n"
    idle = time.monotonic()
    done = waiting.ended()
    took = time.monotonic() - idle
    print(f"{line}returned {took:.1f} s after the card was idle")
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert took < 15
    assert holder.is_running()


def test_a_free_card_is_told_at_once(start: Start) -> None:
    started = time.monotonic()
    done = start([*LLMFT, "gpu-check", "--wait", "0", "--json"], ENVIRONMENT).ended()
    took = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    print(f"whole command {took:.2f} s, of which it asked nvidia-smi for {result['waited_seconds']:.2f} s")
    assert result["gpu_indices"] == [0]
    assert result["gpu_uuids"] == [list_gpus().gpus[0].uuid]
