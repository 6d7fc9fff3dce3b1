# SPDX-License-Identifier: Apache-2.0
"""Proof of a run's layers in RTL: real images' activations through each layer's own unit."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.cost_models.folding import Folding
from lutwise.errors import ConfigError, DataError
from lutwise.files import read_json, write_atomic
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.layers import differing, layer_results, layer_unit, layer_vectors
from lutwise.hw.simulator import simulate_stream, simulator_name
from lutwise.quant.executor import trace
from lutwise.quant.network import Conv, Linear, Network
from lutwise.quant.progress import Tell, silent
from lutwise.workspace import digest, to_json

__all__ = ["RTL_FOLDER", "LayerProof", "UnitOptions", "prove_layers"]

RTL_FOLDER: Final = "rtl"
"""Folder of a run that holds the units and the transcripts of their proofs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOptions:
    """How units are built and simulated.

    Args:
        default: Folding of layers that ``folding`` does not name.
        folding: Of layers by name. Outputs beyond those of a group, which stand for groups side
            by side, make no other unit.
        pipeline: Registers inside the dot products.
        pressure: Let writer and reader of the streams pause at random.
        vectors: Input vectors per layer, at most; all there are if ``None``.
    """

    default: Folding = field(default_factory=lambda: Folding(pe=4, simd=8))
    folding: Mapping[str, Folding] = field(default_factory=dict)
    pipeline: bool = False
    pressure: bool = True
    vectors: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProof:
    """What became of one layer.

    Args:
        layer: Its name.
        unit: Name of the module.
        pe: Outputs side by side.
        simd: Products per output and cycle.
        architecture: Of its dot products.
        form: Of its requantizer; empty for a layer whose sums go out.
        accumulator_bits: Width of its sums.
        images: Images behind the vectors.
        vectors: Input vectors that went through the unit.
        values: Results that were compared with the exact executor.
        mismatches: Of them.
        first_mismatch: The first of them in words; empty without one.
        cycles: Clock edges until the last result, pauses included.
        interval: Cycles per vector without pauses.
        latency: As ``LayerUnit.latency``.
        verilog_sha256: Of the unit.
        inputs_sha256: Of the words that went in.
        outputs_sha256: Of the words that came out.
        simulator: Name and version.
    """

    layer: str
    unit: str
    pe: int
    simd: int
    architecture: str
    form: str
    accumulator_bits: int
    images: int
    vectors: int
    values: int
    mismatches: int
    first_mismatch: str
    cycles: int
    interval: int
    latency: int
    verilog_sha256: str
    inputs_sha256: str
    outputs_sha256: str
    simulator: str


def prove_layers(
    network: Network,
    images: npt.NDArray[np.float32],
    folder: Path,
    *,
    layers: Sequence[str] = (),
    options: UnitOptions | None = None,
    tell: Tell = silent,
) -> list[LayerProof]:
    """Simulate the units of a network's layers and compare them with the exact executor.

    Unit and transcript of each layer are written as soon as it is done; a layer whose unit and
    inputs are those of a transcript that is there is not simulated again.

    Args:
        network: The network.
        images: Its inputs.
        folder: Where units and transcripts go.
        layers: Globs of the names of layers to prove; all if empty.
        options: Sizes of the units, and how to simulate.
        tell: Told about every layer.

    Raises:
        ConfigError: No layer has such a name, or a layer does not fit a unit.
        ToolError: The simulator is missing, refused a unit, or a unit hangs.
        OutputError: The folder cannot be written.
    """
    chosen = options or UnitOptions()
    nodes = _chosen(network, layers)
    found: dict[str, LayerProof] = {}
    name = simulator_name()
    (tensors,) = trace(network, images, batch=len(images), keep=True)
    modules = _module_names([node.name for node in network.layers()])
    for done, node in enumerate(nodes):
        tell(f"simulating {node.name}", done / len(nodes))
        folding = chosen.folding.get(node.name, chosen.default)
        unit = layer_unit(
            network,
            node,
            name=modules[node.name],
            pe=folding.pe,
            simd=folding.simd,
            pipeline=chosen.pipeline,
        )
        vectors = layer_vectors(network, node, tensors[node.input])[: chosen.vectors]
        wanted = layer_results(node, tensors[node.output])[: chosen.vectors]
        judge = _Judge(network, node, unit, vectors, wanted, len(images), name)
        found[node.name] = judge.prove(folder, pressure=chosen.pressure)
    return list(found.values())


def _chosen(network: Network, layers: Sequence[str]) -> list[Conv | Linear]:
    nodes = list(network.layers())
    names = [node.name for node in nodes]
    for glob in layers:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(f"no layer is called {glob!r}; there are {', '.join(names)}")
    if not layers:
        return nodes
    return [node for node in nodes if any(fnmatchcase(node.name, glob) for glob in layers)]


def _module_names(names: Sequence[str]) -> dict[str, str]:
    """Return a Verilog name of its own for every layer."""
    found: dict[str, str] = {}
    for name in names:
        stem = "layer_" + re.sub(r"\W", "_", name, flags=re.ASCII)
        module, number = stem, 2
        while module in found.values():
            module, number = f"{stem}_{number}", number + 1
        found[name] = module
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """One layer, its vectors and what the exact executor makes of them."""

    network: Network
    node: Conv | Linear
    unit: LayerUnit
    vectors: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.float64]
    images: int
    simulator: str

    def prove(self, folder: Path, *, pressure: bool) -> LayerProof:
        unit = self.unit
        verilog, words = unit.emit(), unit.input_words(self.vectors)
        write_atomic(folder / f"{unit.name}.v", verilog.encode())
        transcript = folder / f"{unit.name}.json"
        hashes = _sha256(verilog.encode()), _sha256_of_words(words)
        wanted = _sha256(np.ascontiguousarray(self.wanted).tobytes())
        key = digest([*hashes, wanted, self.images, self.simulator, pressure])
        kept = _kept(transcript, key)
        if kept is not None:
            return kept
        simulation = simulate_stream(
            verilog,
            unit.name,
            words,
            in_bits=unit.simd * unit.activations.bits,
            out_bits=unit.pe * unit.output_bits,
            results=len(self.vectors) * unit.groups * unit.folds,
            patience=4 * unit.cycles + 1000,
            pressure=pressure,
        )
        proof = self._compared(simulation.words, simulation.cycles, *hashes)
        write_atomic(transcript, to_json({"key": key, "proof": asdict(proof)}))
        return proof

    def _compared(
        self, words: list[int], cycles: int, verilog_sha256: str, inputs_sha256: str
    ) -> LayerProof:
        unit = self.unit
        results = unit.results(words)
        bad = differing(self.network, self.node, results, self.wanted)
        first = ""
        if bad.any():
            vector, channel = (int(index) for index in np.argwhere(bad)[0])
            first = (
                f"vector {vector}, channel {channel}: unit {results[vector, channel]:#x}, "
                f"executor {self.wanted[vector, channel]:g}"
            )
        return LayerProof(
            layer=self.node.name,
            unit=unit.name,
            pe=unit.pe,
            simd=unit.simd,
            architecture=str(unit.architecture),
            form=unit.stage.form.value if unit.stage else "",
            accumulator_bits=unit.accumulator_bits,
            images=self.images,
            vectors=len(self.vectors),
            values=self.wanted.size,
            mismatches=int(bad.sum()),
            first_mismatch=first,
            cycles=cycles,
            interval=unit.cycles * unit.groups,
            latency=unit.latency,
            verilog_sha256=verilog_sha256,
            inputs_sha256=inputs_sha256,
            outputs_sha256=_sha256_of_words(words),
            simulator=self.simulator,
        )


def _kept(transcript: Path, key: str) -> LayerProof | None:
    """Return the proof of a transcript that was made of the same unit and inputs."""

    def read(plain: Any) -> LayerProof | None:
        return LayerProof(**plain["proof"]) if plain["key"] == key else None

    if not transcript.is_file():
        return None
    try:
        return read_json(transcript, read, command="verify")
    except DataError:
        return None  # damaged: it is made again


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of_words(words: Sequence[int]) -> str:
    return _sha256("\n".join(f"{word:x}" for word in words).encode())
