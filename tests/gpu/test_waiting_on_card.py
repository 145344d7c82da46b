"""On an NVIDIA GPU: `gpu-check --wait` beside a process that really holds the card. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from llmft_cli.gpu.gpus import list_gpus

pytestmark = pytest.mark.gpu

LLMFT = [sys.executable, "-m", "llmft_cli"]
# One card, whichever others there are, and the same one for nvidia-smi and for CUDA.
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
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


@pytest.fixture
def occupy() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a program that makes the card busy, and wait until it does."""
    started = []

    def start(program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"import sys, threading, torch\n{program}"]
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("program", [HOLDS_MEMORY, COMPUTES], ids=["memory", "load"])
def test_the_wait_ends_when_the_card_is_free_and_not_before(
    program: str, occupy: Callable[[str], subprocess.Popen[str]]
) -> None:
    total = list_gpus().gpus[0].memory_total_bytes
    assert total is not None
    half = f"{total // 2**21}MiB"
    process = occupy(program)
    time.sleep(2)  # the load that nvidia-smi shows is that of the last second
    command = [*LLMFT, "gpu-check", "--wait", "5m", "--min-free", half, "--max-load", "10%"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert line.startswith("waiting for 1 GPU with "), line
        time.sleep(8)
        assert waiting.poll() is None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("be idle\n")
        assert process.stdout.readline() == "idle\n"
        idle = time.monotonic()
        out, _ = waiting.communicate(timeout=60)
    print(f"{line}returned {time.monotonic() - idle:.1f} s after the card was idle")
    assert (waiting.returncode, out) == (0, "0\n")
    assert time.monotonic() - idle < 15
    assert process.poll() is None


def test_a_free_card_is_told_at_once() -> None:
    started = time.monotonic()
    done = subprocess.run([*LLMFT, "gpu-check", "--wait", "0", "--json"], env=ENVIRONMENT, capture_output=True, text=True)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    print(f"whole command {took:.2f} s, of which it asked nvidia-smi for {result['waited_seconds']:.2f} s")
    assert result["gpu_indices"] == [0]
    assert result["gpu_uuids"] == [list_gpus().gpus[0].uuid]
