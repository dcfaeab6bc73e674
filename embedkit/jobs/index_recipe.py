"""Recipes of indexes, for `embedkit index build --recipe` and `embedkit eval --index`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from embedkit.errors import UsageError
from embedkit.index.manifest import Recipe
from embedkit.recipe import digest, fill, find_recipe, read_recipe


@dataclass(frozen=True)
class IndexRecipe:
    """The arguments of `build_index` that say what an index keeps: all that a recipe may hold."""

    coarse: str = "auto"
    fine: Literal["float16", "float32", "int8"] = "float16"
    bytes_per_vector: int | None = None
    recall: float | None = None
    sparse: str | None = None

    @classmethod
    def read(cls, name: str) -> IndexRecipe:
        """One that embedkit brings, or a YAML file. Raises UsageError where there is none, and for other settings."""
        given = read_recipe(find_recipe(name, "index"))
        try:
            return fill(cls, given)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None

    @property
    def settings(self) -> dict[str, Any]:
        """Those that are not left to the default, and the coarse one."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name == "coarse"
        }

    def record(self, name: str) -> Recipe:
        """What an index keeps of it. name: as it was asked for; of a path, only the file's."""
        return Recipe(Path(name).name, digest(asdict(self)), asdict(self))
