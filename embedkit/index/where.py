"""Filters on metadata: {"lang": "en", "year": {"gte": 2020}}, and which documents of a segment pass them.

    {"field": value}                      one of the field's values equals this one
    {"field": {"gte": 2020, "lt": 2024}}  each operator holds for one of its values: eq ne in gt gte lt lte exists
    {"and": [w, ...]}  {"or": [w, ...]}  {"not": w}

What stands in one mapping must hold together; {} lets everything pass. True is 1 and 1.0 is 1; numbers and texts are
never equal, and ranges stay within one of them. `ne` is the contrary of `eq`: a document without the field passes.
A list has several values, a mapping has fields of its own ("author.name") and no value itself, null and NaN are none.
Dates with a time are compared as instants, whatever their zones.

A field that no document of the index has, and a number asked of a field that holds texts alone, are mistakes and refused
(`read_where`): they would let nothing pass or, under `ne` and `not`, everything. What deletes must not be empty, either
(`check_deletion`).

Cost: one array of `count` bytes a comparison, and the numbers of the documents that have the values. Of 200,000
documents, a value that 4,000 have takes 0.04 ms, one that 50,000 have 0.2 ms, and a range over 10,000 values 10 ms.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import UsageError
from embedkit.index.documents import PRESENT, Cut, DocumentReader, Scalar, comparable
from embedkit.limits import shown
from embedkit.types import is_unicode

OPERATORS = ("eq", "ne", "in", "gt", "gte", "lt", "lte", "exists")
JOINTS = ("and", "or", "not")  # fields of these names cannot be asked for
DEEPEST = 50
EXAMPLE = '{"year": {"gte": 2020}}'


@dataclass(frozen=True)
class Where:
    """One node of a filter: and, or, not over `parts`; in, gt, gte, lt, lte, exists over a field."""

    operator: str
    parts: tuple[Where, ...] = ()
    field: str = ""
    values: tuple[Scalar, ...] = ()  # of `in`, several or none; of gt, gte, lt and lte, one

    @property
    def key(self) -> str:
        """The same for filters that differ only in their order, in repetitions or in the spelling of a number."""
        kept = vars(self)  # not cached_property: in Python 3.11 that has a lock, which a forked child may find taken
        if "_key" not in kept:
            kept["_key"] = self._made_key()
        return str(kept["_key"])

    def _made_key(self) -> str:
        if self.operator == "not":
            return f"not({self.parts[0].key})"
        if self.operator in ("and", "or"):
            return f"{self.operator}({','.join(sorted({part.key for part in self.parts}))})"
        return f"{self.operator}({json.dumps(self.field)}:{','.join(sorted({json.dumps(v) for v in self.values}))})"


def parse_where(where: Mapping[str, Any]) -> Where:
    """Reads a filter as JSON has it. Raises UsageError for anything that is not understood."""
    return _parse(where, 1)


def matching(where: Where, reader: DocumentReader) -> NDArray[np.bool_]:
    """(reader.count,) True where the document passes. Raises IntegrityError where the reader's file is damaged.

    A field that no document has matches nothing: segments differ.
    """
    if where.operator == "not":
        return ~matching(where.parts[0], reader)
    if where.operator in ("and", "or"):
        mask = np.full(reader.count, where.operator == "and")
        join = np.logical_and if where.operator == "and" else np.logical_or
        for part in where.parts:
            join(mask, matching(part, reader), out=mask)
        return mask
    mask = np.zeros(reader.count, np.bool_)
    if where.operator == "exists":
        mask[reader.posting(where.field, PRESENT)] = True
    elif where.operator == "in":
        for value in where.values:
            mask[reader.posting(where.field, value)] = True
    else:
        mask[reader.postings(where.field, *_between(where.operator, where.values[0]))] = True
    return mask


def read_where(where: Mapping[str, Any], readers: Sequence[DocumentReader]) -> Where:
    """A filter on the documents of these segments. Raises UsageError as `parse_where` does, and for a field that no document has, or
    whose values are all of another kind than those it is compared with."""
    parsed = parse_where(where)
    check_fields(parsed, readers)
    return parsed


def all_fields(readers: Iterable[DocumentReader]) -> list[str]:
    """The metadata fields that a document has a value for, sorted."""
    return sorted({name for reader in readers for name in reader.fields()})


def check_fields(where: Where, readers: Sequence[DocumentReader]) -> None:
    """The second half of `read_where`."""
    for part in where.parts:
        check_fields(part, readers)
    if where.operator in JOINTS or not readers:  # of no documents, any filter finds none
        return
    held = frozenset[type]().union(*(reader.kinds(where.field) for reader in readers))
    asked = {str if isinstance(value, str) else float for value in where.values}
    if not held:
        raise UsageError(_unknown(where.field, all_fields(readers)))
    if asked and not asked & held:
        ours, theirs = ("numbers", "texts") if float in held else ("texts", "numbers")
        raise UsageError(
            f"The filter compares the field {where.field!r} with {shown(where.values[0])}, but all of its values are {ours}; ask for "
            f"{ours}, or build the index from a corpus that has {theirs} there (csv and DECIMAL columns are read as texts)."
        )


def check_deletion(where: Where) -> None:
    """Raises UsageError for a filter with an empty mapping or list in it: nobody means to delete everything, or nothing, by that."""
    for part in where.parts:
        check_deletion(part)
    if not where.parts and not where.values and where.operator in ("and", "or", "in"):
        raise UsageError(
            f"The filter of a deletion is empty, or has an empty {where.operator!r} in it; say which documents to delete, as in "
            f"{EXAMPLE}."
        )


def _unknown(field: str, names: Sequence[str]) -> str:
    inside = [name for name in names if name.startswith(f"{field}.")]
    if near := inside[:3] or difflib.get_close_matches(field, names):
        hint = f"near it are {', '.join(map(repr, near))}"
    elif field in ("id", "_id", "docid", "title", "text"):
        hint = "ids, titles and texts are no metadata"
    else:
        hint = f"the fields are {shown(list(names))}" if names else "there is no metadata at all"
    return f"The filter asks for the field {field!r}, which no document has; {hint}."


def _between(operator: str, value: Scalar) -> tuple[Cut, Cut]:
    """The range of values, cut where its kind begins and ends: numbers come first, then texts, then PRESENT."""
    start: Cut = ("", False) if isinstance(value, str) else (-math.inf, False)
    stop: Cut = (PRESENT, False) if isinstance(value, str) else ("", False)
    if operator in ("gt", "gte"):
        return (value, operator == "gt"), stop
    return start, (value, operator == "lte")


def _parse(where: object, depth: int) -> Where:
    if depth > DEEPEST:
        raise UsageError(f"The filter is nested more than {DEEPEST} levels deep; write it flatter.")
    if not isinstance(where, Mapping):
        raise UsageError(f"The filter {shown(where)} is no mapping; write one, such as {EXAMPLE}.")
    parts: list[Where] = []
    for name, condition in where.items():
        if not isinstance(name, str) or not is_unicode(name):
            raise UsageError(
                f"The filter names the field {shown(name)}, which is no text; write one, such as {EXAMPLE}."
            )
        parts += _joint(name, condition, depth) if name in JOINTS else _conditions(name, condition)
    return parts[0] if len(parts) == 1 else Where("and", tuple(parts))


def _joint(name: str, condition: object, depth: int) -> list[Where]:
    if name == "not":
        return [Where("not", (_parse(condition, depth + 1),))]
    if not isinstance(condition, (list, tuple)):
        raise UsageError(f'The filter has {shown(condition)} for "{name}"; give it a list of filters.')
    return [Where(name, tuple(_parse(part, depth + 1) for part in condition))]


def _conditions(field: str, condition: object) -> list[Where]:
    if not isinstance(condition, Mapping):
        return [_condition(field, "eq", condition)]
    if not condition:
        raise UsageError(
            f"The filter says nothing of the field {field!r}; give it a value, or one of {', '.join(OPERATORS)}."
        )
    return [_condition(field, operator, value) for operator, value in condition.items()]


def _condition(field: str, operator: object, value: object) -> Where:
    if operator not in OPERATORS:
        raise UsageError(
            f"The filter has {shown(operator)} for the field {field!r}; the operators are {', '.join(OPERATORS)}, "
            'and a field within a field is written "outer.inner".'
        )
    if operator == "exists":
        if not isinstance(value, bool):
            raise UsageError(f"The filter has {shown(value)} for exists of the field {field!r}; write true or false.")
        found = Where("exists", field=field)
        return found if value else Where("not", (found,))
    if operator == "in":
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"The filter has {shown(value)} for in of the field {field!r}; write a list of values.")
        return Where("in", field=field, values=tuple(dict.fromkeys(_scalar(field, item) for item in value)))
    scalar = _scalar(field, value)
    if operator in ("eq", "ne"):
        found = Where("in", field=field, values=(scalar,))
        return found if operator == "eq" else Where("not", (found,))
    return Where(str(operator), field=field, values=(scalar,))


def _scalar(field: str, value: object) -> Scalar:
    scalar = comparable(value)
    if scalar is None or (isinstance(scalar, str) and not is_unicode(scalar)):
        raise UsageError(
            f"The filter compares the field {field!r} with {shown(value)}; compare it with a text, a number, true or "
            "false, with several by {" + '"in": [...]}, or with null by {"exists": false}.'
        )
    return scalar
