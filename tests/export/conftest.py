# SPDX-License-Identifier: Apache-2.0
"""Small random networks, built by hand on the `Network` types (no torch models)."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.quant.accumulator import accumulator_for
from lutwise.quant.executor import execute
from lutwise.quant.formats import Format, IntFormat
from lutwise.quant.network import (
    Add,
    Clamp,
    Concat,
    Conv,
    Flatten,
    Linear,
    Network,
    Node,
    Pad,
    Pool,
    Quantize,
    Requantizer,
    Tensor,
    snap,
)
from lutwise.quant.numerics import encode, quantize


class Sketch:
    """Builds a network node by node; requantizers are scaled to what random images give.

    Args:
        seed: Of weights and probes.
        shape: Of the input.
    """

    def __init__(self, seed: int, shape: tuple[int, ...] = (3, 8, 8)) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.tensors = {"image": Tensor(name="image", shape=shape)}
        self.probe = self.images(16)

    def images(self, n: int) -> npt.NDArray[np.float32]:
        """Return random images, shape (n, *input shape)."""
        return self.random.standard_normal((n, *self.tensors["image"].shape)).astype(np.float32)

    def network(self, output: str) -> Network:
        return Network(
            name="sketch",
            input="image",
            output=output,
            nodes=tuple(self.nodes),
            tensors=dict(self.tensors),
        )

    def _append(
        self, node: Node, shape: tuple[int, ...], fmt: Format | None, scale: Fraction
    ) -> str:
        self.nodes.append(node)
        self.tensors[node.output] = Tensor(name=node.output, shape=shape, format=fmt, scale=scale)
        return node.output

    def _fresh(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def _spread(self, fmt: Format) -> float:
        """Return a deviation that reaches saturation of narrow ranges and subnormals of wide."""
        return min(fmt.max_value / 2, 6.0) if not isinstance(fmt, IntFormat) else fmt.max_value / 2

    def quantize(self, fmt: Format, source: str = "image") -> str:
        name = self._fresh("quantize")
        scale = Fraction(float(np.float32(1.37 / self._spread(fmt))))
        node = Quantize(name=name, input=source, output=f"{name}:out")
        return self._append(node, self.tensors[source].shape, fmt, scale)

    def _requantizer(
        self,
        fmt: Format,
        deviation: npt.NDArray[np.float64],
        *,
        low: float | None,
        high: float | None,
    ) -> Requantizer:
        pairs = []
        for d in deviation:
            ratio = self._spread(fmt) * 2.0 ** self.random.uniform(-1.5, 1.5) / max(d, 2.0**-300)
            pairs.append(snap(Fraction(float(ratio))))
        return Requantizer(
            multiplier=np.array([m for m, _ in pairs], dtype=np.int64),
            shift=np.array([s for _, s in pairs], dtype=np.int64),
            low=fmt.min_value if low is None else low,
            high=fmt.max_value if high is None else high,
        )

    def _weights(self, fmt: Format, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        drawn = self.random.standard_normal(shape) * self._spread(fmt)
        return quantize(fmt, np.abs(drawn) if fmt.min_value == 0 else drawn)

    def _deviation(self, x: str, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Estimate the deviation of each channel's sum from the probe's values."""
        values = execute(self.network(x), self.probe).ravel()
        rows = weights.reshape(len(weights), -1)
        found: npt.NDArray[np.float64] = np.sqrt((rows**2).sum(1) * np.mean(values**2))
        return found

    def _bias(self, deviation: npt.NDArray[np.float64], unit: int) -> npt.NDArray[np.object_]:
        drawn = self.random.standard_normal(len(deviation)) * deviation * 0.3
        return np.array([int(Fraction(d) / Fraction(2) ** unit) for d in drawn], dtype=object)

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int,
        weights: Format,
        out: Format | None,
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        low: float | None = None,
        high: float | None = None,
        wide: bool = False,
        scales: tuple[Fraction, ...] = (Fraction(1),),
    ) -> str:
        """Add a convolution; ``wide`` claims 25 bits more than the sums need."""
        depth, height, width = self.tensors[x].shape
        values = self._weights(weights, (channels, depth // groups, kernel, kernel))
        reach = dilation * (kernel - 1) + 1
        top, left, bottom, right = padding
        shape = (
            channels,
            (height + top + bottom - reach) // stride + 1,
            (width + left + right - reach) // stride + 1,
        )
        name = self._fresh("conv")
        layer = self._layer(x, values, weights, out, bias=bias, low=low, high=high, wide=wide)
        node = Conv(
            name=name,
            input=x,
            output=f"{name}:out",
            weight_scales=scales,
            stride=(stride, stride),
            padding=padding,
            dilation=(dilation, dilation),
            groups=groups,
            **layer,
        )
        return self._append(node, shape, out, Fraction(1, 3) if out else Fraction(1))

    def linear(
        self,
        x: str,
        features: int,
        weights: Format,
        out: Format | None = None,
        *,
        bias: bool = True,
        scales: tuple[Fraction, ...] = (Fraction(1, 7),),
    ) -> str:
        *batch, length = self.tensors[x].shape
        values = self._weights(weights, (features, length))
        name = self._fresh("linear")
        layer = self._layer(x, values, weights, out, bias=bias, low=None, high=None, wide=False)
        node = Linear(name=name, input=x, output=f"{name}:out", weight_scales=scales, **layer)
        return self._append(node, (*batch, features), out, Fraction(1, 5) if out else Fraction(1))

    def _layer(  # type: ignore[no-untyped-def]
        self,
        x: str,
        values: npt.NDArray[np.float64],
        weights: Format,
        out: Format | None,
        *,
        bias: bool,
        low: float | None,
        high: float | None,
        wide: bool,
    ):
        source = self.tensors[x].format
        assert source is not None
        deviation = self._deviation(x, values)
        unit = weights.unit_exponent + source.unit_exponent
        codes = self._bias(deviation, unit) if bias else np.zeros(len(values), dtype=object)
        accumulator = accumulator_for(values, weights, source, codes)
        if wide:
            accumulator = type(accumulator)(
                unit_exponent=unit,
                worst_bits=accumulator.worst_bits,
                bits=accumulator.bits,
                magnitude_bits=max(25, accumulator.magnitude_bits),
            )
        return {
            "weight_format": weights,
            "weight_codes": encode(weights, values),
            "bias_codes": codes,
            "accumulator": accumulator,
            "requantizer": (self._requantizer(out, deviation, low=low, high=high) if out else None),
        }

    def add(self, a: str, b: str, out: Format | None, *, shifts: tuple[int, int] = (0, 0)) -> str:
        name = self._fresh("add")
        requantizer = None
        if out:
            values = execute(self.network(a), self.probe) * 2.0 ** shifts[0]
            deviation = np.array([np.sqrt(np.mean(values**2))]) * 1.5
            requantizer = self._requantizer(out, deviation, low=None, high=None)
        node = Add(
            name=name,
            inputs=(a, b),
            output=f"{name}:out",
            shifts=shifts,
            requantizer=requantizer,
        )
        return self._append(node, self.tensors[a].shape, out, Fraction(1))

    def pool(
        self,
        x: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        *,
        maximum: bool = False,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        out: Format | None = None,
    ) -> str:
        name = self._fresh("pool")
        channels, height, width = self.tensors[x].shape
        top, left, bottom, right = padding
        shape = (
            channels,
            (height + top + bottom - kernel[0]) // stride[0] + 1,
            (width + left + right - kernel[1]) // stride[1] + 1,
        )
        requantizer = None
        if out:
            values = execute(self.network(x), self.probe)
            deviation = np.array([np.sqrt(np.mean(values**2)) * kernel[0] * kernel[1]])
            requantizer = self._requantizer(out, deviation, low=None, high=None)
        node = Pool(
            name=name,
            input=x,
            output=f"{name}:out",
            maximum=maximum,
            kernel=kernel,
            stride=stride,
            padding=padding,
            requantizer=requantizer,
        )
        fmt = self.tensors[x].format if maximum else out
        return self._append(node, shape, fmt, self.tensors[x].scale)

    def concat(self, *xs: str) -> str:
        name = self._fresh("concat")
        first = self.tensors[xs[0]]
        channels = sum(self.tensors[x].shape[0] for x in xs)
        node = Concat(name=name, inputs=xs, output=f"{name}:out", axis=1)
        return self._append(node, (channels, *first.shape[1:]), first.format, first.scale)

    def flatten(self, x: str) -> str:
        name = self._fresh("flatten")
        spec = self.tensors[x]
        node = Flatten(name=name, input=x, output=f"{name}:out")
        return self._append(node, (int(np.prod(spec.shape)),), spec.format, spec.scale)

    def pad(self, x: str, padding: tuple[int, int, int, int]) -> str:
        name = self._fresh("pad")
        spec = self.tensors[x]
        channels, height, width = spec.shape
        top, left, bottom, right = padding
        node = Pad(name=name, input=x, output=f"{name}:out", padding=padding)
        shape = (channels, height + top + bottom, width + left + right)
        return self._append(node, shape, spec.format, spec.scale)

    def clamp(self, x: str, low: float, high: float) -> str:
        name = self._fresh("clamp")
        node = Clamp(name=name, input=x, output=f"{name}:out", low=low, high=high)
        return self._append(node, self.tensors[x].shape, None, Fraction(1))


@pytest.fixture
def sketch() -> Callable[..., Sketch]:
    """Return the class of sketches; a fixture, as tests cannot import this file."""
    return Sketch
