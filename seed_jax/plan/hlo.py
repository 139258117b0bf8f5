"""Parse the text of a compiled HLO module: how often each operation runs, its collectives, its estimated cycles.

The body of a loop is counted as often as its trip count.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<code>[a-z][\w-]*)\((?P<rest>.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**63 - 1
_BITS = {"pred": 8, "bf16": 16}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation."""

    name: str
    shape: str
    code: str
    rest: str
    computation: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
        kind: one of `KINDS`.
        payload: bytes of the full array that it produces (all-gather) or consumes (the others), once.
        times: how often a step runs it.
        group: partition ids of one group.
        overlaps: whether it is asynchronous.
    """

    kind: str
    payload: int
    times: int
    group: tuple[int, ...]
    overlaps: bool

    @property
    def bytes(self) -> int:
        return self.payload * self.times


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and how often a run enters each."""

    computations: dict[str, list[Operation]]
    entry: str
    times: dict[str, int]

    def operations(self) -> Iterator[tuple[Operation, int]]:
        """Yield every operation with how often it runs."""
        for name, operations in self.computations.items():
            if self.times.get(name):
                for operation in operations:
                    yield operation, self.times[name]


def parse(text: str) -> Module:
    """Parse a module's text."""
    computations: dict[str, list[Operation]] = {}
    entry, name, current = "", "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, current = header["name"], computations.setdefault(header["name"], [])
            entry = name if header["entry"] else entry
        elif line.rstrip() == "}":  # not the end of an attribute that runs over several lines
            current = None
        elif current is not None and (match := _OPERATION.match(line)):
            current.append(Operation(match["name"], match["shape"], match["code"], match["rest"], name))
    return Module(computations, entry, _times(computations, entry))


def _times(computations: dict[str, list[Operation]], entry: str) -> dict[str, int]:
    calls = {name: list(_calls(operations, computations)) for name, operations in computations.items()}
    times: dict[str, int] = defaultdict(int)
    for name in _callers_first(calls, entry):
        times[name] += name == entry
        for callee, count in calls[name]:
            times[callee] += times[name] * count
    return dict(times)


def _callers_first(calls: dict[str, list[tuple[str, int]]], entry: str) -> list[str]:
    """Sort computations topologically: callers before callees."""
    done: dict[str, None] = {}
    stack = [(entry, False)]
    while stack:
        name, is_done = stack.pop()
        if is_done:
            done[name] = None
        elif name not in done:
            stack.append((name, True))
            stack.extend((callee, False) for callee, _ in calls[name] if callee not in done)
    return list(reversed(done))


def _calls(operations: list[Operation], computations: dict[str, list[Operation]]) -> Iterator[tuple[str, int]]:
    for operation in operations:
        count = _trips(operation, computations) if operation.code == "while" else 1
        for callee in _CALLED.findall(operation.rest):
            # The scalar functions of reductions and sorts cost nothing.
            if callee in computations and not (operation.code in KINDS and "to_apply" in operation.rest):
                yield callee, count
        for branches in _BRANCHES.findall(operation.rest):
            for callee in branches.replace("%", "").split(", "):
                yield callee, 1


def _trips(loop: Operation, computations: dict[str, list[Operation]]) -> int:
    """Return the trip count of a loop: as the compiler states it, else the bound that its condition compares with."""
    if known := _KNOWN_TRIPS.search(loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
    bounds = [
        int(match[1])
        for operation in computations.get(condition[1] if condition else "", [])
        if operation.code == "constant" and (match := re.match(r"(\d+)\)", operation.rest))
    ]
    return max(bounds, default=1)


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of each array in a shape; a tuple has several."""
    sizes = []
    for kind, extents in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int("".join(filter(str.isdigit, kind)))
        sizes.append(math.prod(int(extent) for extent in extents.split(",") if extent) * bits // 8)
    return sizes


def collectives(module: Module) -> list[Collective]:
    """Return the collectives of a module; one that several fusions contain counts once."""
    unique: dict[str, tuple[Operation, int]] = {}
    for operation, times in module.operations():
        if operation.code.removesuffix("-start") not in KINDS:
            continue
        # A collective that is spread over several fusions appears in each of them, as links of one chain.
        chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', operation.rest)
        key = " ".join(chain.groups()) if chain else operation.name
        if key not in unique or times > unique[key][1]:
            unique[key] = (operation, times)
    return [_collective(operation, times) for operation, times in unique.values()]


def _collective(operation: Operation, times: int) -> Collective:
    kind = operation.code.removesuffix("-start")
    group, sizes = first_group(operation.rest), array_bytes(operation.shape)
    is_async = operation.code.endswith("-start")
    # The result of a -start operation contains the operands, too.
    payload = max(sizes) if is_async else sum(sizes)
    if kind == "reduce-scatter":
        payload *= len(group)
    elif kind == "all-reduce" and operation.computation.startswith(
        "all-reduce-scatter"
    ):  # how the TPU compiler writes one: all-reduce, then slice
        kind = "reduce-scatter"
    overlaps = is_async or "async_collective_name" in operation.rest or "chain_id" in operation.rest
    return Collective(kind, payload, times, group, overlaps)


def cycles(module: Module) -> int:
    """Return the TPU compiler's estimated cycles of all but collectives and Pallas kernels; 0 for other compilers.

    Copies that run beside the tensor core, on the SparseCores of v7x, have no estimate and count nothing.
    """
    return sum(
        int(match[1]) * times
        for operation, times in module.operations()
        if (match := _CYCLES.search(operation.rest)) and int(match[1]) != _NO_ESTIMATE
    )


def kernels(module: Module) -> int:
    """Count the calls of Pallas TPU kernels."""
    return sum(
        times
        for operation, times in module.operations()
        if operation.code == "custom-call" and "tpu_custom_call" in operation.rest
    )


def memory_needed(error: str) -> int | None:
    """Return the bytes that a program which does not fit needs at least, from the compiler's error message."""
    match = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])", error)
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)) if match else None


def first_group(rest: str) -> tuple[int, ...]:
    """Return the partition ids of the first group, in any of HLO's notations."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, grid, order = ([int(n) for n in part.split(",")] if part else [] for part in iota.groups())
        ids = np.arange(math.prod(grid)).reshape(grid)
        return tuple((ids.transpose(order) if order else ids).reshape(groups)[0].tolist())
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        return _mesh_group(named[1], named[2])
    return ()


def _mesh_group(mesh: str, axes: str) -> tuple[int, ...]:
    """Parse `'a'=8,'b'=4` with `'a'` or `'a':(2)4`, a sub-axis of size 4 after one of size 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    grid, varying, position = [], [], 0
    subaxes = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in sizes.items():
        if name not in subaxes:
            split = [size]
        elif not subaxes[name][0]:
            split = [size]
            varying.append(position)
        else:
            before, length = map(int, subaxes[name])
            split = [before, length, size // (before * length)]
            varying.append(position + 1)
        grid += split
        position += len(split)
    ids = np.arange(math.prod(grid)).reshape(grid)
    return tuple(ids[tuple(slice(None) if i in varying else 0 for i in range(len(grid)))].ravel().tolist())
