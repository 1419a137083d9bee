"""A generator made ready for bulk work on one device.

In: photos of any sizes, uint8 or uint16 (H, W, channels) as the generator takes them. Out: its pixels for each, of the same height and
width. It is prepared once: BatchNorm is folded away, the arithmetic is the quickest that is exact enough, and how many photos go
through at once is found out from those that come. What does not fit into memory is halved, a single photo is cut into tiles.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cyclegan.geometry import pad_to_multiple
from cyclegan.images import Pixels
from cyclegan.tiles import smallest_tile, translate_in_tiles
from cyclegan.unit_range import from_unit_range, to_unit_range
from cyclegan.weights import Generator
from cyclegan.winograd import quicken_convolutions

Precision = Literal["auto", "bf16", "fp32"]

MEMORY_SHARE = 0.5
"""Of the memory that is free, the share that activations may fill; others allocate too."""

TILED_PIXELS = 4 * 1024**2
"""At most so many go through together in tiles, which are four where no size is asked for; more gain nothing."""

MAX_BATCH_SIZE = 256
"""The search for the quickest batch size ends here."""

TRIALS = 3
"""Batches of a size that are timed, of which the quickest counts: the first is slow, and others use the machine too."""

Size = tuple[int, int]
"""Height and width in pixels, padded to multiples of the generator's stride."""


class PreparedGenerator:
    """Generator, ready for bulk inference on one device.

    Args:
        generator: its weights and its pixels.
        device: where it runs; the number of threads on a CPU is the caller's.
        precision: of the arithmetic; `auto` is bf16 where the device has it and all pixels have 8 bits, else fp32.
        batch_size: photos of one size that go through together; None finds out what is quickest.
        tile: side in pixels; photos with a longer side go through in tiles of it. None: only those that do not fit into memory.
        max_pixels: that may go through together, fewer where memory is short.

    Attributes:
        precision: `bf16` or `fp32`, what is in use.
        tiled: which photos of the last call went through in tiles, by index.
    """

    def __init__(
        self,
        generator: Generator,
        device: torch.device,
        *,
        precision: Precision = "auto",
        batch_size: int | None = None,
        tile: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.stride, self.output = generator.spec.stride, generator.output
        self.device = device
        # bf16 holds 8 bits of a value: too few for pixels of 16
        quickest: Literal["bf16", "fp32"] = "bf16" if generator.input.bits == generator.output.bits == 8 and has_bf16(device) else "fp32"
        self.precision = quickest if precision == "auto" else precision
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.network = prepare_network(generator.build(), device, self.dtype)
        self.tile = tile
        self.tiled: frozenset[int] = frozenset()
        self._sizes = BatchSizes(batch_size)
        self._max_pixels: float = math.inf if max_pixels is None else max_pixels
        probe = torch.zeros(1, generator.input.channels, *2 * [smallest_tile(self.stride)], device=device, dtype=self.dtype)
        self._bytes_per_pixel = activation_bytes(self.network, probe)
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def batch_size(self) -> int:
        """Photos that go through together: as asked for, or as found for the size of photo that came last."""
        return self._sizes.current

    def translate(self, photos: Sequence[Pixels]) -> list[Pixels]:
        """(H, W, channels) as the generator takes them to (H, W, channels) as it gives them, in the same order.

        Raises:
            RuntimeError: the memory does not even hold the smallest of tiles (on a GPU torch.cuda.OutOfMemoryError).
        """
        padded = [pad_to_multiple(photo, self.stride) for photo in photos]
        groups: dict[Size, list[int]] = defaultdict(list)
        for index, (height, width, _) in enumerate(photo.shape for photo in padded):
            if self.tile is None or max(height, width) <= self.tile:
                groups[height, width].append(index)
        results: dict[int, Pixels] = {}
        for size, members in groups.items():
            results.update(self._translate_group(padded, size, members))
        self.tiled = frozenset(range(len(photos))) - results.keys()
        results.update((index, self._translate_tiled(padded[index])) for index in sorted(self.tiled))
        return [results[index][: photo.shape[0], : photo.shape[1]] for index, photo in enumerate(photos)]

    def _translate_group(self, padded: Sequence[Pixels], size: Size, members: list[int]) -> Iterator[tuple[int, Pixels]]:
        """Photos of one size, by index, in batches; leaves out those that are left when not even one fits into memory."""
        waiting, flying = deque(members), deque[_Flight]()
        while waiting and (fitting := int(self._limit() // math.prod(size))):
            number, timed = self._sizes.propose(size, fitting)
            if timed:  # nothing else shall run meanwhile
                yield from _land(flying, 0)
            chunk = [waiting.popleft() for _ in range(min(number, len(waiting)))]
            started = time.perf_counter()
            try:
                flying.append(self._launch(chunk, np.stack([padded[index] for index in chunk])))
            except RuntimeError as error:
                self._learn_limit(error, len(chunk) * math.prod(size))
                waiting.extendleft(reversed(chunk))
                continue
            yield from _land(flying, 0 if timed else 1)
            if timed:
                self._sizes.note(size, len(chunk), time.perf_counter() - started)
        yield from _land(flying, 0)

    def _translate_tiled(self, photo: Pixels) -> Pixels:
        smallest = smallest_tile(self.stride)
        while True:
            limit = self._limit()
            wanted = self.tile or math.sqrt(min(limit, TILED_PIXELS) / 4)
            side = max(smallest, int(min(wanted, math.sqrt(limit))) // self.stride * self.stride)
            together = max(1, int(min(limit, TILED_PIXELS) // side**2))
            try:
                return translate_in_tiles(
                    self.network, self._forward, photo, stride=self.stride, output=self.output, side=side, batch_size=together
                )
            except RuntimeError as error:
                if (side, together) == (smallest, 1):
                    raise
                self._learn_limit(error, together * side**2)

    def _launch(self, members: list[int], photos: Pixels) -> _Flight:
        """Sends a batch (N, H, W, channels) on its way; on a GPU this returns before it has arrived."""
        with torch.inference_mode():
            made = from_unit_range(self._forward(photos), self.output.bits).permute(0, 2, 3, 1).contiguous()
            if self._uploads is None:
                return _Flight(members, made, None)
            host = torch.empty_like(made, device="cpu", pin_memory=True)
            host.copy_(made, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(self.device))
        return _Flight(members, host, arrived)

    @torch.inference_mode()
    def _forward(self, photos: Pixels) -> Tensor:
        """Pixels (N, H, W, channels), sides multiples of the stride, to float (N, channels, H, W) in [-1, 1] on the device."""
        batch = self._upload(torch.from_numpy(photos)).permute(0, 3, 1, 2)  # NHWC in memory is channels_last
        made: Tensor = self.network(to_unit_range(batch).to(self.dtype))
        return made

    def _upload(self, photos: Tensor) -> Tensor:
        """On a GPU on a stream of its own, which need not wait for the batch that is being computed."""
        if self._uploads is None:
            return photos
        with torch.cuda.stream(self._uploads):
            batch = photos.pin_memory().to(self.device, non_blocking=True)
        compute = torch.cuda.current_stream(self.device)
        compute.wait_stream(self._uploads)
        batch.record_stream(compute)  # its memory is not given away before the computation is over
        return batch

    def _limit(self) -> float:
        """Pixels that may go through together now."""
        return min(self._max_pixels, MEMORY_SHARE * free_bytes(self.device) / self._bytes_per_pixel)

    def _learn_limit(self, error: RuntimeError, pixels: int) -> None:
        """Remembers that so many `pixels` were too many; raises any error that says something else."""
        text = str(error)  # the CPU's allocator has no type of its own for it
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "can't allocate memory" not in text and "not enough memory" not in text:
            raise error
        self._max_pixels = min(self._max_pixels, pixels // 2)


class _Flight(NamedTuple):
    """A batch on its way: which photos, uint8 or uint16 (N, H, W, channels) on the CPU, and on a GPU when they are there."""

    members: list[int]
    pixels: Tensor
    arrived: torch.cuda.Event | None


def _land(flying: deque[_Flight], left: int) -> Iterator[tuple[int, Pixels]]:
    """Waits for the first batches until only so many are `left`."""
    while len(flying) > left:
        flight = flying.popleft()
        if flight.arrived is not None:
            flight.arrived.synchronize()
        yield from zip(flight.members, flight.pixels.numpy(), strict=True)


class BatchSizes:
    """Finds for each size of photo how many go through at once: doubled until two doublings in a row made no more photos a second.

    Args:
        fixed: this many always, no search.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.current = fixed or 1
        self._fixed = fixed
        self._rates: dict[Size, dict[int, list[float]]] = {}
        self._pixels = 0  # of the batches that were quickest last

    def propose(self, size: Size, fitting: int) -> tuple[int, bool]:
        """How many photos to take, `fitting` at most, and whether to `note` how long they took."""
        if self._fixed:
            return min(self._fixed, fitting), False
        # a new size begins a step below what is known to be quick for another
        first = 1 << max(0, min(self._pixels // math.prod(size), MAX_BATCH_SIZE).bit_length() - 2)
        rates = self._rates.setdefault(size, {first: []})
        tried = max(rates)
        self.current = _quickest(rates)
        timed = len(rates[tried]) < TRIALS and tried <= fitting
        return min(tried if timed else self.current, fitting), timed

    def note(self, size: Size, number: int, seconds: float) -> None:
        """So many photos took so long; fewer than were proposed, the last of a kind, say nothing."""
        rates, tried = self._rates[size], max(self._rates[size])
        rates[tried] += [number / seconds] if number == tried else []
        if len(rates[tried]) == TRIALS:
            quickest = _quickest(rates)
            self._pixels = quickest * math.prod(size)
            if tried <= 2 * quickest and tried < MAX_BATCH_SIZE:
                rates[tried * 2] = []


def _quickest(rates: dict[int, list[float]]) -> int:
    return max(rates, key=lambda number: max(rates[number], default=0.0))


def prepare_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network in eval mode, its BatchNorm folded into the convolutions, as the device convolves quickest."""
    for module in list(network.eval().modules()):
        if isinstance(module, nn.Sequential):
            _fold_batch_norm(module)
        if device.type == "cpu":
            _quicken_instance_norm(module)
    if device.type == "cpu" and dtype == torch.float32:
        quicken_convolutions(network)
    return network.requires_grad_(False).to(device, dtype).to(memory_format=torch.channels_last)


def _fold_batch_norm(layers: nn.Sequential) -> None:
    """Multiplies each BatchNorm into the convolution right before it, and takes it out."""
    for index in range(len(layers) - 1, 0, -1):
        conv, norm = layers[index - 1], layers[index]
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            layers[index - 1] = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
            del layers[index]


def _quicken_instance_norm(network: nn.Module) -> None:
    """InstanceNorm as GroupNorm of as many groups as channels: the same, but on a CPU it keeps channels_last, and its sums are finer."""
    for name, norm in network.named_children():
        if isinstance(norm, nn.InstanceNorm2d):
            setattr(network, name, nn.GroupNorm(norm.num_features, norm.num_features, norm.eps, affine=False))


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16, not only imitates it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def activation_bytes(network: nn.Module, probe: Tensor) -> float:
    """Memory that a forward takes at its peak in bytes per pixel, a generous guess: the largest layer's input and output, times 2."""
    largest = 0

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].nbytes + output.nbytes)

    hooks = [layer.register_forward_hook(look) for layer in network.modules() if not list(layer.children())]
    with torch.inference_mode():
        network(probe)
    for hook in hooks:
        hook.remove()
    return 2 * largest / (probe.shape[2] * probe.shape[3])  # on the CPU seed and resnet take 0.9 to 1.7 times that layer


def free_bytes(device: torch.device) -> float:
    """Memory that can be allocated now; infinite where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free, meminfo, limit = math.inf, Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():  # in kB
        free = next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":  # a container has less than its machine
        free = min(free, max(0, int(most) - int(limit.with_name("memory.current").read_text())))
    return free
