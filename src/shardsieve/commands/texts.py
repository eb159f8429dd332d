"""Values that come as text, on a command line or in a file."""

import re
from typing import Any

import yaml

_LONGEST_SHOWN = 80


class _Strict(yaml.SafeLoader):
    """YAML in which no key comes twice, and `1e-3` is a number as everywhere else."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key.value in [one.value for one in keys[:number]]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} comes twice", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


def yaml_of(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ValueError: If it is none, in one line.

    >>> yaml_of("{rate: 1e-3}")
    {'rate': 0.001}
    """
    try:
        return yaml.load(text, Loader=_Strict)  # a safe loader
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def refuse_url(name: str, path: object) -> None:
    """Refuse a URL, also one that has lost a slash, where only a local path will do.

    Raises:
        ValueError: If it is one.
    """
    if re.match(r"[a-z0-9+]+:/", str(path)):
        raise ValueError(
            f"{name} must be a local path, got {path}; shards may lie in object stores, and a "
            "store there is made and opened from Python: ss.index, ss.open_store"
        )


def shortened(value: object) -> str:
    """Return what a value is written as, long ones cut.

    >>> shortened("x" * 200)[-8:]
    "xxx...'"
    """
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]}...{text[-1]}"


def constants(option: str, texts: list[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` texts as a dictionary, values as YAML reads them.

    >>> constants("policy-arg", ["period=5", "fixed=true"])
    {'period': 5, 'fixed': True}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--{option} must be NAME=VALUE, got {text!r}")
        try:
            found[name.replace("-", "_")] = yaml_of(value)
        except ValueError as error:
            raise ValueError(f"--{option} {name} must be a value as in YAML: {error}") from error
    return found


def pairs(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """Return `0:128,30:160` as pairs of integers.

    >>> pairs("resolutions", "0:128,30:160")
    ((0, 128), (30, 160))
    """
    try:
        split = [part.split(":") for part in text.split(",") if part]
        return tuple((int(first), int(second)) for first, second in split)
    except ValueError as error:
        raise ValueError(f"--{option} must be EPOCH:PIXELS,..., got {text!r}") from error


def warned(*warnings: str | None) -> dict[str, Any]:
    """Return those that there are, as one `warning` to print."""
    text = "; ".join(filter(None, warnings))
    return {"warning": text} if text else {}
