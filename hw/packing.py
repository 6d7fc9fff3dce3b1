# SPDX-License-Identifier: Apache-2.0
"""Estimate of LUT sites and CARRY8 cells of a mapped netlist.

A LUT6 site of UltraScale+ holds one function of six inputs or two functions that share five.
Yosys counts functions; a placer fills sites. The estimate places the LUT in front of every
carry position first, lets the function on the position's data input share it through the
second output, then pairs the other functions greedily where two of them have at most five
inputs together. A carry position whose select input comes from elsewhere costs a site that
only passes the signal on. A LUT with two outputs in front of a carry position is one site where
the sum of that position goes to a flip-flop, and two where it leaves the site: then the second
output has no way out. This is an estimate, not the result of a placer.
"""

import heapq
from dataclasses import dataclass

from lutwise.hw.netlist import CARRY_WIDTH, FLIP_FLOPS, MEMORY_LUTS, Net, Netlist

__all__ = ["Packing", "pack"]

_SHARED_INPUTS = 5
_CARRY8 = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Result of the estimate.

    Args:
        luts: LUT6 sites, those of memories included.
        luts_raw: LUT functions, as Yosys counts them.
        carry8: CARRY8 cells, from the lengths of the carry chains.
    """

    luts: int
    luts_raw: int
    carry8: int


def pack(netlist: Netlist) -> Packing:
    """Estimate the sites of a netlist."""
    inputs = {
        index: netlist.lut_inputs(index)
        for index, cell in enumerate(netlist.cells)
        if cell.kind.startswith("LUT")
    }
    used: set[int] = set()
    sites = carry8 = 0
    for chain, length in _chains(netlist):
        carry8 += -(-length // _CARRY8)
        sites += length
        for position in range(length):
            cell_index, bit = _locate(netlist, chain, position)
            sites += _place(netlist, cell_index, bit, inputs, used)
    rest = [index for index in inputs if index not in used]
    single = [index for index in rest if not _has_two_outputs(netlist, index)]
    sites += len(rest) - _pairs({index: inputs[index] for index in single})
    sites += sum(MEMORY_LUTS.get(cell.kind, 0) for cell in netlist.cells)
    functions = sum(1 + _has_two_outputs(netlist, index) for index in inputs)
    return Packing(luts=sites, luts_raw=functions, carry8=carry8)


def _has_two_outputs(netlist: Netlist, index: int) -> bool:
    return netlist.cells[index].kind == "LUT6_2"


def _chains(netlist: Netlist) -> list[tuple[list[int], int]]:
    """Return every carry chain: its cells in order and the positions that do something."""
    carries = [i for i, cell in enumerate(netlist.cells) if cell.kind in CARRY_WIDTH]
    following: dict[int, int] = {}
    for index in carries:
        source = netlist.driver.get(netlist.cells[index].pin("CI"))
        if source and source[1] == "CO" and netlist.cells[source[0]].kind in CARRY_WIDTH:
            following[source[0]] = index
    heads = set(carries) - set(following.values())
    found = []
    for head in sorted(heads):
        chain = [head]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        length = position = 0
        for index in chain:
            cell = netlist.cells[index]
            for bit in range(CARRY_WIDTH[cell.kind]):
                position += 1
                if any(netlist.readers.get(cell.pin(pin, bit)) for pin in ("O", "CO")):
                    length = position
        found.append((chain, length))
    return found


def _locate(netlist: Netlist, chain: list[int], position: int) -> tuple[int, int]:
    width = CARRY_WIDTH[netlist.cells[chain[0]].kind]
    return chain[position // width], position % width


def _place(
    netlist: Netlist,
    cell_index: int,
    bit: int,
    inputs: dict[int, frozenset[Net]],
    used: set[int],
) -> int:
    """Move the LUTs of one carry position into its site; return sites that it needs besides."""
    cell = netlist.cells[cell_index]
    select = netlist.driver.get(cell.pin("S", bit), (-1, ""))[0]
    if select not in inputs or select in used:
        return 0
    used.add(select)
    if _has_two_outputs(netlist, select):
        readers = netlist.readers.get(cell.pin("O", bit), [])
        return int(any(netlist.cells[reader].kind not in FLIP_FLOPS for reader, _ in readers))
    data = netlist.driver.get(cell.pin("DI", bit), (-1, ""))[0]
    if data in inputs and data not in used and len(inputs[select] | inputs[data]) <= _SHARED_INPUTS:
        used.add(data)
    return 0


def _pairs(inputs: dict[int, frozenset[Net]]) -> int:
    """Pair functions that fit one site together, those with the fewest partners first."""
    small = [index for index, nets in inputs.items() if len(nets) <= _SHARED_INPUTS]
    by_net: dict[Net, list[int]] = {}
    for index in small:
        for net in inputs[index]:
            by_net.setdefault(net, []).append(index)
    partners = {
        index: {
            other
            for net in inputs[index]
            for other in by_net[net]
            if other != index and len(inputs[index] | inputs[other]) <= _SHARED_INPUTS
        }
        for index in small
    }
    alive = set(small)
    queue = [(len(found), index) for index, found in partners.items() if found]
    heapq.heapify(queue)
    pairs = 0
    while queue:
        degree, index = heapq.heappop(queue)
        if index not in alive:
            continue
        candidates = sorted(partners[index] & alive)
        if len(candidates) != degree:
            if candidates:
                heapq.heappush(queue, (len(candidates), index))
            continue
        partner = min(
            candidates,
            key=lambda other: (
                len(partners[other] & alive),
                -len(inputs[index] & inputs[other]),
            ),
        )
        alive -= {index, partner}
        pairs += 1
    return pairs
