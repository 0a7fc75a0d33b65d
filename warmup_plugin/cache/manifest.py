# SPDX-License-Identifier: Apache-2.0
"""The manifest beside a table: whose table it is, and how each of its tasks came out.

Owns the schema of this package's own file. A header says all that a warm start asks; the tasks are
decoded when one of them is read, since ten thousand of them take longer than all the rest. Fields
of a later version are kept and written back. Bad bytes are a `Miss`; bad tasks under a good header
are no tasks, with the reason in `tasks_miss`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec.structs import replace

from warmup_plugin.runtime.safe_json import Miss, decode, json_document, json_line

#: Grows when the meaning of a field changes, not when one is added. A reader takes its own and the
#: one before.
SCHEMA: Final = 2

#: ``unstable`` stands in files of schema 1 only.
Outcome = Literal["tuned", "adopted", "default", "unstable"]
#: Outcomes without a winner: such a task is known, and not tuned again unless asked for.
DEFAULTS: Final = ("default",)
WINNERS: Final = ("tuned", "adopted")
#: Schema 1 had ``default`` also for what had only been in the way: no memory, no compiler.
_TELLS_FAILURES: Final = 2


class TaskRecord(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How one task came out, when and where.

    `keys` has one tuple of candidate file keys, in the order of the runners, for each distinct list
    that the job's ranks have: twins have several. `ms` is the time of FlashInfer's choice, also
    where that was not worth it, `default_ms` that of FlashInfer's default. Of a race: `tied`, how
    many candidates the noise could not tell apart, the winner included, and `confidence`, how often
    one of them would win again. `extra` holds a later version's fields.
    """

    op: str
    keys: tuple[tuple[str, ...], ...]
    outcome: Outcome
    reason: str = ""
    ms: float | None = None
    default_ms: float | None = None
    rank: int | None = None
    host: str = ""
    gpu: str = ""
    at: float = 0.0
    samples: int | None = None
    candidates: int | None = None
    tied: int | None = None
    confidence: float | None = None
    blocked: str | None = None
    extra: dict[str, Any] = {}

    def answer(self) -> TaskRecord:
        """Return the record without the circumstances: equal where the job was told the same."""
        return msgspec.structs.replace(
            self, ms=None, default_ms=None, rank=None, host="", gpu="", at=0.0, samples=None,
            candidates=None, tied=None, confidence=None,
        )  # fmt: skip


#: A part of a document, in one piece.
_Raw: TypeAlias = bytes | memoryview | msgspec.Raw


class Tasks(Mapping[str, TaskRecord]):
    """Task records by task id; those read from a file are decoded at the first look at one."""

    def __init__(self, records: Mapping[str, TaskRecord]) -> None:
        self._records: Mapping[str, TaskRecord] | Miss | None = records
        self._raw: _Raw = b""
        self.defaults = tuple(sorted(i for i, r in records.items() if r.outcome in DEFAULTS))
        blocked = {i: r.blocked for i, r in records.items() if r.blocked is not None}
        self.blocked = dict(sorted(blocked.items()))

    @classmethod
    def undecoded(cls, raw: _Raw, defaults: tuple[str, ...], blocked: dict[str, str]) -> Tasks:
        """Return the tasks of a file; `defaults` and `blocked` are what its header says of them."""
        tasks = cls({})
        tasks._records, tasks._raw = None, raw
        tasks.defaults, tasks.blocked = defaults, blocked
        return tasks

    @property
    def miss(self) -> Miss | None:
        """Why the tasks cannot be read, if they cannot; decodes them."""
        if self._records is None:
            self._records = _decode_tasks(bytes(self._raw))
        return self._records if isinstance(self._records, Miss) else None

    def _decoded(self) -> Mapping[str, TaskRecord]:
        return {} if self.miss else cast("Mapping[str, TaskRecord]", self._records)

    def __getitem__(self, task: str) -> TaskRecord:
        return self._decoded()[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def rendered(self) -> bytes:
        """Return the tasks as JSON, one line each; a file's as they stand there, not decoded."""
        if self._raw:
            return bytes(self._raw)
        return json_document(json_line(task, _flat(self[task])) for task in sorted(self)).rstrip()

    def answers_like(self, other: Tasks) -> bool:
        """Return whether both tell a job the same, whenever and wherever that was found out."""
        if self is other or (self._raw and bytes(self._raw) == bytes(other._raw)):
            return True
        return self.keys() == other.keys() and all(
            record.answer() == other[task].answer() for task, record in self.items()
        )


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A table's manifest.

    `inventory` is the digest of the task ids of the last survey, and `complete` says that the table
    answers them all. `loose` are the keys of the table that belong to no task: other programs'
    entries, found in the file and kept. `extra` holds a later version's fields.
    """

    identity: str
    tasks: Mapping[str, TaskRecord]
    table_sha256: str = ""  # set when the table is rendered
    generation: int = 0
    complete: bool = False
    engine: str = ""
    engine_version: str = ""
    inventory: str = ""
    loose: tuple[str, ...] = ()
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, Tasks):
            msgspec.structs.force_setattr(self, "tasks", Tasks(self.tasks))

    @property
    def _tasks(self) -> Tasks:
        return cast("Tasks", self.tasks)

    @property
    def known_defaults(self) -> tuple[str, ...]:
        """The ids of the tasks without a winner; from the header, decodes nothing."""
        return self._tasks.defaults

    @property
    def blocked(self) -> Mapping[str, str]:
        """Task id -> driver, of the tasks in which processes have died; from the header, too."""
        return self._tasks.blocked

    @property
    def tasks_miss(self) -> Miss | None:
        """Why `tasks` is empty although the file has some; decodes them."""
        return self._tasks.miss

    def rendered_tasks(self) -> bytes:
        """Return the tasks as they stand in the file."""
        return self._tasks.rendered()

    def answers_like(self, other: Manifest) -> bool:
        """Return whether writing one over the other would tell a reader nothing new."""
        headers = (
            replace(manifest, table_sha256="", generation=0, tasks={}) for manifest in (self, other)
        )
        return next(headers) == next(headers) and self._tasks.answers_like(other._tasks)


_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Header(msgspec.Struct, omit_defaults=True):
    """All of the file but the tasks; the order of the fields is the order in the file."""

    schema: _Natural
    identity: str
    table_sha256: str
    generation: _Natural
    complete: bool
    engine: str
    engine_version: str
    inventory: str
    known_defaults: tuple[str, ...] = ()
    blocked: dict[str, str] = {}
    loose: tuple[str, ...] = ()


#: How the line of the tasks begins, and how the document ends after them.
_TASKS_ARE: Final = b'"tasks": '
_END: Final = b"\n}\n"
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HEADER: Final = msgspec.json.Decoder(_Header)
_ANYTHING: Final = msgspec.json.Decoder()
_OBJECTS: Final = msgspec.json.Decoder(dict[str, dict[str, Any]])


def parse_manifest(data: bytes, *, limit: int) -> Manifest | Miss:
    """Read a manifest of at most `limit` bytes, its tasks not yet. Never raises."""
    if len(data) > limit:
        return Miss(f"{len(data)} bytes, more than the {limit} allowed", "too_large")
    fields, tasks = _halves(data)
    if isinstance(fields, Miss):
        return fields
    known = {name: fields.pop(name) for name in _Header.__struct_fields__ if name in fields}
    header = decode(_HEADER, msgspec.json.encode(known))
    if isinstance(header, Miss):
        return header
    if header.schema > SCHEMA:
        return Miss(f"schema {header.schema}, this version reads up to {SCHEMA}", "newer")
    if header.schema < SCHEMA - 1:
        return Miss(f"schema {header.schema}, this version reads from {SCHEMA - 1}", "unreadable")
    extra = {name: decode(_ANYTHING, bytes(value)) for name, value in fields.items()}
    values = msgspec.structs.asdict(header)
    undecoded = Tasks.undecoded(tasks, values.pop("known_defaults"), values.pop("blocked"))
    if header.schema < _TELLS_FAILURES:
        lasting = {t: r for t, r in undecoded.items() if r.outcome in WINNERS or r.blocked}
        values["complete"] = header.complete and len(lasting) == len(undecoded)
        values["schema"], undecoded = SCHEMA, Tasks(lasting)
    return Manifest(**values, tasks=undecoded, extra=extra)


def _halves(data: bytes) -> tuple[dict[str, msgspec.Raw] | Miss, _Raw]:
    """Return the header's fields and the tasks, these not looked at where `render_manifest` wrote.

    It puts each field in a line, and the tasks last, as any later version must: JSON strings have
    no line ends, so what is cut there is the header or nothing that can be decoded. To pass over
    ten thousand tasks takes as long as to parse their table.
    """
    cut = data.find(b",\n" + _TASKS_ARE)
    if cut >= 0 and data.endswith(b"\n}" + _END):
        fields = decode(_FIELDS, data[:cut] + b"}")
        if not isinstance(fields, Miss):
            # A view: to copy them takes longer than to read them from the disk.
            return fields, memoryview(data)[cut + 2 + len(_TASKS_ARE) : -len(_END)]
    fields = decode(_FIELDS, data)
    return fields, b"{}" if isinstance(fields, Miss) else fields.pop("tasks", b"{}")


@functools.cache
def _of_tasks() -> msgspec.json.Decoder[dict[str, TaskRecord]]:
    return msgspec.json.Decoder(dict[str, TaskRecord])


def _decode_tasks(raw: bytes) -> dict[str, TaskRecord] | Miss:
    tasks: dict[str, TaskRecord] | Miss = decode(_of_tasks(), raw)
    if not isinstance(tasks, Miss):
        return tasks
    objects = decode(_OBJECTS, raw)  # slower, for what it may be: a later version's fields
    if isinstance(objects, Miss):
        return objects
    try:
        return {task: _with_extra(values) for task, values in objects.items()}
    except msgspec.ValidationError as error:
        return Miss(str(error), "unreadable")


def _with_extra(values: dict[str, Any]) -> TaskRecord:
    known = {name: values.pop(name) for name in TaskRecord.__struct_fields__ if name in values}
    return msgspec.convert({**known, "extra": values}, TaskRecord)


def render_manifest(manifest: Manifest) -> bytes:
    """Return the document: equal manifests give equal bytes, one line per field and per task."""
    header = msgspec.convert(manifest, _Header, from_attributes=True)
    fields = {**msgspec.to_builtins(header), **manifest.extra}
    lines = [json_line(name, value) for name, value in fields.items()]
    return json_document([*lines, _TASKS_ARE + manifest.rendered_tasks()])


def _flat(record: TaskRecord) -> TaskRecord | dict[str, Any]:
    if not record.extra:
        return record
    values: dict[str, Any] = msgspec.to_builtins(record)
    values.update(values.pop("extra"))
    return values
