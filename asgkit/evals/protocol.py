"""The settings of one benchmark result, kept beside it: two results have a delta only when all settings agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asgkit.config import flatten
from asgkit.runs.files import write_json

FILE = "protocol.json"


class ProtocolMismatch(ValueError):
    """Two results that were not measured alike; the message names every field that differs."""


@dataclass(frozen=True)
class Protocol:
    """How one result was measured.

    settings: everything that two results must share (prompts, seeds, guidance, decoding, detector, precision ...);
    subject: what is allowed to differ (role, adapter, run, step); differences: where the benchmark departs from the
    one that it is modelled on, in sentences.
    """

    benchmark: str
    settings: Mapping[str, Any]
    subject: Mapping[str, Any]
    differences: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write protocol.json into the folder of the result."""
        write_json(folder / FILE, {"benchmark": self.benchmark, "subject": self.subject, "settings": self.settings,
                                   "known_differences": list(self.differences)})

    @classmethod
    def read(cls, folder: Path) -> Protocol:
        """The record of a result folder; FileNotFoundError names the command that makes one."""
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {FILE} in {folder}: a result without its settings cannot be compared; make "
                                    "one with asgkit benchmark")
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["benchmark"], content["settings"], content["subject"],
                   tuple(content["known_differences"]))


def differing(first: Protocol, second: Protocol) -> list[str]:
    """Every setting in which two records differ, as `field: first against second`."""
    before, after = _plain(first), _plain(second)
    missing = "(absent)"
    return [f"{name}: {before.get(name, missing)!r} against {after.get(name, missing)!r}"
            for name in sorted(before.keys() | after.keys()) if before.get(name, missing) != after.get(name, missing)]


def _plain(protocol: Protocol) -> dict[str, Any]:
    """Dotted settings as they would be read back from JSON (tuples become lists)."""
    return flatten(json.loads(json.dumps({"benchmark": protocol.benchmark, **protocol.settings})))


def require_comparable(base: Protocol, evolved: Protocol) -> None:
    """Raise ProtocolMismatch unless `evolved` minus `base` is a difference between adapters and nothing else.

    That is: equal settings, a base without an adapter, and an evolved model with one.
    """
    found = differing(base, evolved)
    if found:
        raise ProtocolMismatch("base and evolved were not measured alike, so they have no delta: " + "; ".join(found)
                               + ". Measure both again with one command: asgkit benchmark ... RUN")
    if base.subject["adapter_sha256"] is not None:
        raise ProtocolMismatch(f"the base of a delta has no adapter, this one has role {base.subject['role']!r}")
    if evolved.subject["adapter_sha256"] is None:
        raise ProtocolMismatch("the evolved model of a delta has an adapter, this one is the base (role none)")


def claim_folder(folder: Path, protocol: Protocol, *, resume: bool = False) -> None:
    """Put the record into a folder that holds no other result.

    With `resume` a folder with the same record is taken again. Raises FileExistsError for a result already there,
    ProtocolMismatch for an unfinished one with other settings or another subject.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FILE).is_file():
        if not resume:
            raise FileExistsError(f"{folder} holds a result already: name another folder, or delete it")
        there = Protocol.read(folder)
        found = differing(there, protocol)
        if dict(there.subject) != dict(protocol.subject):
            found.append(f"subject: {dict(there.subject)!r} against {dict(protocol.subject)!r}")
        if found:
            raise ProtocolMismatch(f"{folder} holds a result of other settings: {'; '.join(found)}; name another "
                                   "folder, or delete it")
        return
    protocol.write(folder)
