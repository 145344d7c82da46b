"""Offloads the inputs of checkpointed layers to host memory between the forward and the backward pass.

A checkpointed layer keeps only its input; in a deep model, these are most of a step's activations. Copies overlap with
computation on a separate stream: an input is copied to the host while its layer computes, and back while the following
layer runs its backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Copied:
    """A layer's input on the device, and the event after which it may be read or freed; None: immediately."""

    index: int
    rows: torch.Tensor
    done: torch.cuda.Event | None = None


class OffloadedInputs:
    """The inputs of all layers of one pass, at most two of which are on the device.

    On the `meta` device nothing is stored, but tensors live as long as on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stores = device.type != "meta"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._stored: dict[int, torch.Tensor] = {}
        self._leaving: Copied | None = None
        self._coming: Copied | None = None

    def put(self, index: int, rows: torch.Tensor) -> None:
        """Store the input of a layer. Call this in the order of the layers; the first one starts a new pass.

        The remains of a failed pass are dropped without waiting for them: they may have been part of a CUDA graph.
        """
        if self._leaving is not None and index > 0:
            self._wait_for(self._leaving)
        self._coming = None
        self._leaving = Copied(index, rows)
        if self._stores:
            self._leaving.done = self._copy(rows, self._room_for(index, rows))

    def take(self, index: int) -> torch.Tensor:
        """The input of a layer. Call this in reverse order; it starts fetching the previous layer's input."""
        copied = self._leaving if self._leaving is not None and self._leaving.index == index else self._coming
        assert copied is not None
        assert copied.index == index
        self._wait_for(copied)
        self._leaving = self._coming = None
        if index > 0:
            self._coming = Copied(index - 1, torch.empty_like(copied.rows))
            if self._stores:
                self._coming.done = self._copy(self._room_for(index - 1, copied.rows), self._coming.rows)
        return copied.rows

    def _room_for(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """Host memory that stays allocated: its addresses are part of the CUDA graphs."""
        room = self._stored.get(index)
        if room is None or room.numel() < rows.numel():
            room = torch.empty(rows.numel(), dtype=rows.dtype, pin_memory=self._on_gpu)
            self._stored[index] = room
        return room[: rows.numel()].view(rows.shape)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        """Start a copy after all work queued so far; it overlaps with later work."""
        if self._stream is None:
            target.copy_(source)
            return None
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done.record()
        return done

    def _wait_for(self, copied: Copied) -> None:
        if copied.done is not None:
            torch.cuda.current_stream().wait_event(copied.done)
