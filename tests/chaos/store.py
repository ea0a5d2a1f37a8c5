"""A run's folder on the S3 server, looked at and damaged behind the program's back.

What is said here of the layout is written anew from its description, not taken from the program.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass
from typing import Any

import s3fs
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

FOLDER = re.compile(r"\d{12}-[0-9a-f]+")
MANIFEST = "manifest.json"
CLOCK = "clock.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint folder.

    Attributes:
        position: `samples_seen`.
        folder: its path.
        problem: why it cannot be restored; None where it can.
        files: the paths of its files, the manifest first.
        ratios: sha256 of its frozen ratios by stage.
    """

    position: int
    folder: str
    problem: str | None
    files: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run that has finished leaves behind, as far as two equal runs must agree on it."""

    position: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    ratios: tuple[str, ...]
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]


class RunView:
    """The files of one run.

    Args:
        url: of the server itself, not of a proxy.
        path: bucket and folders of the run.
    """

    def __init__(self, url: str, path: str):
        self._fs = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=False, skip_instance_cache=True)
        self._path = path

    def checkpoints(self) -> list[Saved]:
        """All checkpoint folders, oldest first; every file is read and compared with its manifest."""
        kept = self._ratio_hashes()
        return sorted((self._examine(folder, kept) for folder in self._folders()), key=lambda saved: saved.position)

    def newest_finished(self) -> int:
        """The highest position that has a manifest, valid or not; 0 where there is none. Quick."""
        finished = [place.split("/")[-2] for place in self._find("checkpoints") if place.endswith(f"/{MANIFEST}")]
        return max((int(name[:12]) for name in finished), default=0)

    def newest_valid(self) -> int:
        """Where the run must go on; 0 where it must start anew."""
        return max((saved.position for saved in self.checkpoints() if saved.problem is None), default=0)

    def num_unfinished(self) -> int:
        """Folders that dead writers left behind."""
        places = self._find("checkpoints")
        finished = {place.rpartition("/")[0] for place in places if place.endswith(f"/{MANIFEST}")}
        return len({place.rpartition("/")[0] for place in places} - finished)

    def truncate(self, path: str, chance: random.Random) -> str:
        """Cuts an object short; says what was done."""
        data = self._fs.cat_file(path)
        length = chance.randrange(len(data))
        self._fs.pipe_file(path, data[:length])
        return f"{self._short(path)} cut to {length} of {len(data)} bytes"

    def flip(self, path: str, chance: random.Random) -> str:
        """Turns one bit of an object; says what was done."""
        data = bytearray(self._fs.cat_file(path))
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        data[place] ^= 1 << bit
        self._fs.pipe_file(path, bytes(data))
        return f"{self._short(path)}: bit {bit} of byte {place} turned"

    def remove(self, path: str, chance: random.Random) -> str:
        """Removes an object; says what was done."""
        self._fs.rm_file(path)
        return f"{self._short(path)} removed"

    def ratio_to_damage(self, saved: Saved, chance: random.Random) -> str | None:
        """One of the two sound copies of a frozen ratio that a checkpoint uses; None where none has two."""
        kept = self._ratio_hashes()
        twice = [place for place, digest in kept.items() if digest in saved.ratios]
        twice = [place for place in twice if sum(kept[place] == digest for digest in kept.values()) > 1]
        return chance.choice(sorted(twice)) if twice else None

    def claim_elsewhere(self) -> int:
        """Claims the run for a process of another machine that never shows a sign of life; the claim's number."""
        numbers = [int(place.rpartition("/")[2].partition(".")[0]) for place in self._find("owner")]
        claim = {"id": "0", "host": "elsewhere", "machine": "another", "pid": 1, "started": "1", "user": "somebody"}
        claim |= {"since": "2026-01-01 00:00:00 UTC", "place": "0"}
        self._fs.pipe_file(f"{self._path}/owner/{max(numbers) + 1:06d}.json", json.dumps(claim).encode())
        return max(numbers) + 1

    def outcome(self) -> Outcome:
        """What a finished run left."""
        last = [saved for saved in self.checkpoints() if saved.problem is None][-1]
        data = {path.rpartition("/")[2]: self._fs.cat_file(path) for path in last.files}
        tensors = {name: load_tensors(data[name]) for name in sorted(data) if name.endswith(".safetensors")}
        lines = [self.lines(name) for name in ("metrics.jsonl", "events.jsonl")]
        return Outcome(last.position, tensors, json.loads(data["state.json"]), last.ratios, *lines)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log, without times."""
        parsed = map(json.loads, self._fs.cat_file(f"{self._path}/{name}").decode().splitlines())
        return [{key: value for key, value in line.items() if key != "time"} for line in parsed]

    def _folders(self) -> list[str]:
        folders = {place.rpartition("/")[0] for place in self._find("checkpoints")}
        return sorted(folder for folder in folders if FOLDER.fullmatch(folder.rpartition("/")[2]))

    def _find(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        return self._fs.find(f"{self._path}/{folder}")

    def _ratio_hashes(self) -> dict[str, str]:
        return {place: _sha256(self._fs.cat_file(place)) for place in self._find("ratios")}

    def _examine(self, folder: str, kept: dict[str, str]) -> Saved:
        position = int(folder.rpartition("/")[2][:12])
        try:
            manifest = json.loads(self._fs.cat_file(f"{folder}/{MANIFEST}"))
            sound = manifest.pop("sha256") == _sha256(json.dumps(manifest, sort_keys=True).encode())
        except FileNotFoundError:
            return Saved(position, folder, "unfinished")
        except (ValueError, AttributeError, KeyError, TypeError):
            sound = False
        if not sound:
            return Saved(position, folder, "damaged manifest", (f"{folder}/{MANIFEST}",))
        expected = {f"{folder}/{name}": about["sha256"] for name, about in manifest["files"].items()}
        there = self._find(folder.removeprefix(f"{self._path}/"))
        wrong = [p for p, digest in expected.items() if p not in there or _sha256(self._fs.cat_file(p)) != digest]
        ratios = tuple(about["sha256"] for about in manifest["ratios"])
        lost = set(ratios) - set(kept.values())
        problem = f"{len(wrong)} damaged files, {len(lost)} lost ratios" if wrong or lost else None
        return Saved(position, folder, problem, (f"{folder}/{MANIFEST}", *sorted(expected)), ratios)

    def _short(self, path: str) -> str:
        return path.removeprefix(f"{self._path}/")


def differences(left: Outcome, right: Outcome) -> list[str]:
    """In what two finished runs differ; empty where they are equal bit for bit, clocks apart."""
    found = [
        name
        for name in ("position", "state", "ratios", "metrics", "events")
        if getattr(left, name) != getattr(right, name)
    ]
    if left.tensors.keys() != right.tensors.keys():
        return [*found, "the names of the parts"]
    for file, named in left.tensors.items():
        others = right.tensors[file]
        if named.keys() != others.keys():
            found.append(f"the names in {file}")
            continue
        found += [f"{file}: {name}" for name, tensor in named.items() if not _same_bits(tensor, others[name])]
    return found


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.contiguous().view(-1).view(torch.uint8), right.contiguous().view(-1).view(torch.uint8))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
