"""The inputs of checkpointed layers in the host's memory, from the forward pass to the backward pass.

What a checkpointed layer keeps is its input, and of many layers that is most of a step's activations.
Copies go along with the computation, on a stream of their own: an input goes to the host while its layer
computes, and comes back while the layer behind it does its backward pass.
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
    """Inputs of all layers of one pass, of which two at most are on the device.

    On the `meta` device nothing is stored, but as much is held as on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stores = device.type != "meta"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._stored: dict[int, torch.Tensor] = {}
        self._leaving: Copied | None = None
        self._coming: Copied | None = None

    def put(self, index: int, rows: torch.Tensor) -> None:
        """Store the input of a layer; the layers come in their order, and with the first one a new pass begins.

        What a pass that broke off has left is forgotten, and not waited for: it may have been part of a graph.
        """
        if self._leaving is not None and index > 0:
            self._wait_for(self._leaving)
        self._coming = None
        self._leaving = Copied(index, rows)
        if self._stores:
            self._leaving.done = self._copy(rows, self._room_for(index, rows))

    def take(self, index: int) -> torch.Tensor:
        """The input of a layer; the layers come in reverse order. That of the layer before is fetched meanwhile."""
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
        """Memory of the host that stays: where a pass is recorded, its addresses are part of the graph."""
        room = self._stored.get(index)
        if room is None or room.numel() < rows.numel():
            room = torch.empty(rows.numel(), dtype=rows.dtype, pin_memory=self._on_gpu)
            self._stored[index] = room
        return room[: rows.numel()].view(rows.shape)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        """Copy what is computed by now into what is free by now, beside what is computed from now on."""
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
