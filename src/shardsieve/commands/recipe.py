"""The configuration of `shardsieve run`, read from YAML and checked before any step starts."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shardsieve._errors import ShardsieveError
from shardsieve.commands.consistent import check_recipe
from shardsieve.commands.sections import Recipe
from shardsieve.commands.texts import shortened, yaml_of

# What pydantic names a value's place by, if it may be of several types.
_BRANCHES = {"str", "int", "list[str]", "[key]"}
_PLAINLY = {
    "model_type": "it should be a mapping of keys",
    "dict_type": "it should be a mapping of keys",
    "path_type": "it should be a path",
    "tuple_type": "it should be a list",
    "list_type": "it should be a list",
}


def read_recipe(path: Path) -> Recipe:
    """Return a recipe that was read and checked.

    Raises:
        ShardsieveError: If the file is missing, no YAML, or a key or value is wrong, naming it.
    """
    if not path.is_file():
        raise ShardsieveError(f"no configuration at {path}; check the path")
    try:
        found = yaml_of(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ShardsieveError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ShardsieveError(f"{path} must be text in UTF-8: {error}; save it as such") from error
    except ValueError as error:
        raise ShardsieveError(f"{path} must be YAML: {error}") from error
    if not isinstance(found, dict):
        raise ShardsieveError(f"{path} must be a mapping with the keys {', '.join(_keys(Recipe))}")
    try:
        recipe = Recipe.model_validate(found)
    except ValidationError as error:
        raise ShardsieveError(f"{path}: {_first(error)}") from error
    try:
        check_recipe(recipe)
    except (ValueError, ShardsieveError) as error:
        raise ShardsieveError(f"{path}: {error}") from error
    return recipe


def _first(error: ValidationError) -> str:
    """Return one line about the first thing that is wrong."""
    found = error.errors()[0]
    where = [str(part) for part in found["loc"]]
    name = ".".join(where)
    if found["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in where[:-1]:
            model = _section(model, part)
        near = difflib.get_close_matches(where[-1], _keys(model), n=1)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(_keys(model))}"
        return f"{name} is no known key; {cure}"
    if found["type"] == "missing":
        return f"{name} must be given"
    if found["type"] == "value_error":
        return ": ".join([*where[:-1], str(found["ctx"]["error"])])
    name = ".".join(part for part in where if part not in _BRANCHES)
    wrong = _PLAINLY.get(found["type"], found["msg"])
    return f"{name} must be right, got {shortened(found['input'])}: {wrong}"


def _section(model: Any, name: str) -> Any:
    kind = model.model_fields[name].annotation
    parts = [kind, *getattr(kind, "__args__", ())]
    return next(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))


def _keys(model: Any) -> list[str]:
    return list(model.model_fields)
