"""Identity of the data behind a saved position: list, shapes, seed, rules of the order. Stored in checkpoints."""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from mindspeed_mm.data.feed.list_index import IndexPaths
from mindspeed_mm.data.feed.sampler import GroupedSampler
from mindspeed_mm.data.feed.samples import Dataset


class Identity:
    """Detects that a saved position belongs to other data. Ranks and global batch size may change: see `sampler.py`."""

    def __init__(self, dataset: Dataset, sampler: GroupedSampler):
        self._dataset = dataset
        self._sampler = sampler
        paths = dataset.paths
        self._paths = paths.checksum if isinstance(paths, IndexPaths) else _checksum(paths)

    def state_dict(self) -> dict:
        """Plain values. The fingerprint covers the clips that the global batch takes, as in the first checkpoints."""
        return {
            "fingerprint": self._fingerprint(self._sampler.group_size),
            "seed": self._sampler.order.seed,
            "clips": len(self._dataset.paths),
            "paths": self._paths,
            "rules": self._sampler.rules,
        }

    def changed_since(self, state: Mapping) -> list[str]:
        """Descriptions of changes since `state` was saved; empty if the position is still valid."""
        rules = self._sampler.rules
        then = state.get("rules", rules)
        changed = [
            f"{name} {str(then[name]).lower()} -> {str(now).lower()}"
            for name, now in rules.items()
            if then[name] != now
        ]
        if self._fingerprint(int(state["group_size"])) == state["fingerprint"]:
            return changed
        if "paths" not in state:
            return [*changed, "another list of clips, other shapes or another seed"]
        if state["seed"] != self._sampler.order.seed:
            changed.append(f"--seed {state['seed']} -> {self._sampler.order.seed}")
        if state["paths"] != self._paths:
            changed.append(f"another list of clips ({state['clips']} -> {len(self._dataset.paths)} that can be used)")
        return changed or ["other shapes of the clips (preprocess_parameters of the data JSON)"]

    def _fingerprint(self, group_size: int) -> int:
        keys, paths = self._dataset.keys, self._dataset.paths
        members = self._sampler.members(group_size)
        seed = zlib.crc32(str(self._sampler.order.seed).encode())
        if isinstance(paths, IndexPaths):
            chosen = np.zeros(len(paths), dtype=bool)
            chosen[members] = True
            return paths.lines.checksum(chosen, seed)
        return _checksum((f"{paths[index]} {keys[index]}" for index in members.tolist()), seed)


def _checksum(lines: Iterable[str], checksum: int = 0) -> int:
    for line in lines:
        checksum = zlib.crc32(f"{line}\n".encode(), checksum)
    return checksum
