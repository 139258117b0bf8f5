"""Which partitions of a program exchange with one another."""

import math
import re

import numpy as np


def first_group(rest: str) -> tuple[int, ...]:
    """Return the partitions of the first group, in any of the ways they are written."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, grid, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        ids = np.arange(math.prod(grid)).reshape(grid)
        ids = ids.transpose(order) if order else ids
        return tuple(ids.reshape(groups)[0].tolist())
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        return _mesh_group(named[1], named[2])
    return ()


def _mesh_group(mesh: str, axes: str) -> tuple[int, ...]:
    """Read `'a'=8,'b'=4` with `'a'` or `'a':(2)4`, a part of size 4 of the axis with 2 before it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    grid, varying, position = [], [], 0
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in sizes.items():
        if name not in parts:
            cut = [size]
        elif not parts[name][0]:
            cut = [size]
            varying.append(position)
        else:
            before, length = map(int, parts[name])
            cut = [before, length, size // (before * length)]
            varying.append(position + 1)
        grid += cut
        position += len(cut)
    ids = np.arange(math.prod(grid)).reshape(grid)
    return tuple(ids[tuple(slice(None) if i in varying else 0 for i in range(len(grid)))].ravel().tolist())
