"""Bytes that an engine needs for a network: weights, Adam's state, gradients and buckets, by ZeRO stage."""

from dataclasses import dataclass

from torch import nn

from ebmscale.training.engine import MAX_BUCKET

FP32 = 4
PERSISTENT = 100_000
"""ZeRO 3 keeps parameters of fewer elements whole on every worker (DeepSpeed's own default)."""
MMAP_BYTES = 32 * 2**20
"""malloc keeps freed blocks below this size, and does not return them to the system (glibc on 64 bits)."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a forecast: plain torch, or DeepSpeed with a ZeRO stage."""

    zero_stage: int | None

    @property
    def name(self) -> str:
        """The name in tables."""
        return "plain" if self.zero_stage is None else f"ZeRO {self.zero_stage}"


@dataclass(frozen=True)
class Footprint:
    """Bytes that an engine needs for one network of `num_elements` parameters.

    Attributes:
        num_elements: parameters.
        num_small: parameters in tensors that ZeRO 3 keeps whole.
        num_in_heap: parameters in tensors that malloc keeps when they are freed.
        half: bytes of a weight in the forward pass.
        engine: plain or a ZeRO stage.
        size: workers.
    """

    num_elements: int
    num_small: int
    num_in_heap: int
    half: int
    engine: EngineChoice
    size: int

    @classmethod
    def of(cls, module: nn.Module, half: int, engine: EngineChoice, size: int) -> "Footprint":
        """The footprint of a module."""
        counts = [parameter.numel() for parameter in module.parameters()]
        small, in_heap = (sum(n for n in counts if n < most) for most in (PERSISTENT, MMAP_BYTES // half))
        return cls(sum(counts), small, in_heap, half, engine, size)

    @property
    def _stage(self) -> int:
        return self.engine.zero_stage or 0

    @property
    def _part(self) -> int:
        """Parameters whose state this worker keeps."""
        return -(-self.num_elements // self.size) if self._stage else self.num_elements

    @property
    def _bucket(self) -> int:
        return min(self.num_elements, MAX_BUCKET)

    def weights(self) -> int:
        """The module's own weights."""
        return self.half * (self._part + self.num_small if self._stage == 3 else self.num_elements)

    def masters(self) -> int:
        """fp32 weights that Adam updates, if they are not the module's own."""
        if self.half == FP32 and self._stage in (0, 3):
            return 0
        return FP32 * self._part

    def moments(self) -> int:
        """Adam's two moments."""
        return 2 * FP32 * self._part

    def kept_gradients(self) -> int:
        """What ZeRO 3 keeps between updates: reduced gradients, gradients for Adam, and its bucket."""
        return 2 * FP32 * self._part + self.half * self._bucket if self._stage == 3 else 0

    def gradients(self) -> int:
        """Gradients, and ZeRO's buffers for them, at the end of the backward pass."""
        whole = self.half * self.num_elements
        if self._stage == 3:
            return 2 * whole  # the gathered weights too
        if self._stage:
            return whole + FP32 * self._bucket + FP32 * self._part
        return whole

    def step(self) -> int:
        """Gradients and their copies during Adam's update. The update itself needs no memory."""
        if self._stage == 3:
            return 0
        if self._stage:
            return FP32 * self._part
        copies = FP32 * self.num_elements if self.half != FP32 else 0
        flat = FP32 * self.num_elements if self.size > 1 else 0
        return self.half * self.num_elements + copies + flat

    def refresh(self) -> int:
        """The gathered weights and their copies, if the weights are sharded."""
        return 2 * self.half * self.num_elements if self._stage == 3 else 0

    def kept_by_malloc(self) -> int:
        """Memory that set-up and ZeRO 3 have freed, but that malloc has not returned to the system, on a host."""
        gathered = self.half if self._stage == 3 else 0
        return (2 * FP32 + gathered) * self.num_in_heap

    def setup(self) -> int:
        """The initial weights, and the engine's copies of them."""
        casts = self.half if self._stage == 3 or self.half != FP32 else 0
        flattened = FP32 if self.engine.zero_stage == 0 and self.half != FP32 else 0
        return (2 * FP32 + casts + flattened) * self.num_elements
