"""YAML that a stranger may have written: every recipe and task.yaml comes through here.

A key that stands twice, of which YAML takes the last, is refused; so is what a few bytes can ask for: aliases of aliases, deep
nesting, numbers of thousands of digits.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from embedkit.limits import NESTED, YAML_VALUES, shown
from embedkit.types import is_unicode

REASON = 200  # characters of what PyYAML says, which may quote a whole file


class _Strict(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._values = 0
        self._sizes: dict[str | None, int] = {}  # anchor -> values below it

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Counts before anything is built: an alias counts as all that it stands for."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise _refused(f"*{event.anchor} stands inside itself", event)
            self._values += self._sizes.get(event.anchor, 0)
        self._values += 1
        self._level += 1
        if self._level > NESTED + 1:  # a number in a list of NESTED levels
            raise _refused(f"nested more than {NESTED} levels", event)
        if self._values > YAML_VALUES:
            raise _refused(f"more than {YAML_VALUES:,} values, aliases written out", event)
        node = super().compose_node(parent, index)
        self._level -= 1
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._values - before
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):  # !!int abc, 2024-13-45
            raise _refused(f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}", node) from None
        if isinstance(value, str) and ("\0" in value or not is_unicode(value)):
            raise _refused(f"{shown(value)} holds no text", node)
        return value

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        keys = set()
        for one, _ in node.value:
            key = self.construct_object(one, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise _refused(f"{shown(key)} is no name of a setting", one)
            if key in keys:
                raise _refused(f"the key {shown(key)} stands twice", one)
            keys.add(key)
        return super().construct_mapping(node, deep)


def _refused(reason: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)


def read_yaml(text: str) -> Any:
    """What YAML says. Raises ValueError, with reason and line, for anything else."""
    try:
        return yaml.load(text, Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason, line = error.problem or error.context or "", f", line {mark.line + 1}" if mark else ""
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character that YAML has not, "\U99999999"
        reason, line = str(error).split("\n")[0], ""
    raise ValueError(reason[:REASON] + line)
