"""From what a user types to a list of shard paths, and from a member name to a sample key."""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import braceexpand

from shardsieve._errors import ShardsieveError

# webdataset's own rule (tariterators.base_plus_ext): the key ends at the first dot of the base
# name, directories included; the suffix is the rest, lower-cased.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
# Between patterns, as in webdataset, but not inside the brackets of an IPv6 host.
_BETWEEN = re.compile(r"::(?![^\[]*\])")


def split_key(name: str) -> tuple[str, str] | None:
    """Return (key, suffix) of a member name, or None where webdataset skips the member.

    >>> split_key("a/b.c/d.e.F")
    ('a/b.c/d', 'e.f')
    """
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot == base or name.startswith("__") or "\n" in name:  # seldom
        return _split_by_rule(name)
    return (name[:dot], name[dot + 1 :].lower()) if dot > base else None


def _split_by_rule(name: str) -> tuple[str, str] | None:
    if _META.match(name):
        return None
    match = _KEY.match(name)
    return (match[1], match[2].lower()) if match else None


def expand_urls(urls: str | Path | Iterable[str | Path]) -> list[str]:
    """Return the shards that brace patterns, globs and file lists name, in their given order.

    Globs are sorted. A path that ends in `.txt` or begins with `@` is a list, one shard a line.
    `::` stands between several. A file of the very name is itself, whatever signs its folders have.

    Raises:
        ShardsieveError: If nothing matches, a shard is named twice, is a `pipe:`, or its name is
            not UTF-8.

    >>> expand_urls("s3://bucket/{00..02}.tar")
    ['s3://bucket/00.tar', 's3://bucket/01.tar', 's3://bucket/02.tar']
    """
    given = [urls] if isinstance(urls, (str, Path)) else list(urls)
    found = [url for item in given for url in _expand_one(str(item))]
    if not found:
        raise ShardsieveError(f"no shards match {', '.join(map(str, given)) or 'an empty list'}")
    files = [url if "://" in url else str(Path(url).resolve()) for url in found]
    for file in files:
        if not is_utf8(file):
            raise ShardsieveError(f"shards must have names in UTF-8, got {file!r}; rename it")
    repeated = {file for file, count in Counter(files).items() if count > 1}
    twice = [url for url, file in zip(found, files, strict=True) if file in repeated]
    if twice:
        raise ShardsieveError(f"shards must be named once, got {twice[0]} twice as {twice[1]}")
    return found


def is_utf8(name: str) -> bool:
    r"""Return whether a store can hold a name of the file system or of a tar.

    >>> is_utf8("s-\u00e9.tar"), is_utf8("s-\udce9.tar")
    (True, False)
    """
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def refuse_pipe(url: str) -> None:
    """Refuse webdataset's URL of a command, whose output can only be read as a whole."""
    if url.startswith("pipe:"):
        raise ShardsieveError(
            f"{url} has no byte ranges; name the file or object itself, as in s3://... or hf://..."
        )


def _expand_one(pattern: str) -> list[str]:
    refuse_pipe(pattern)
    parts = _BETWEEN.split(pattern)
    if len(parts) > 1 and not _is_file(local_name(pattern)):
        return [url for part in parts for url in _expand_one(part)]
    if pattern.startswith("@") or pattern.endswith(".txt"):
        name = pattern.removeprefix("@")
        if "://" in name:
            raise ShardsieveError(f"the shard list must be a local file, got {name}; download it")
        return _read_list(Path(name))
    if "{" in pattern and _is_file(local_name(pattern)):
        return [local_name(pattern)]
    try:
        expanded = list(braceexpand.braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise ShardsieveError(
            f"shards must be named as in train-{{000..099}}.tar, got {pattern}: {error}"
        ) from error
    return [url for item in expanded for url in _expand_glob(item)]


def _expand_glob(pattern: str) -> list[str]:
    pattern = local_name(pattern)
    if "://" in pattern:
        if "*" in pattern or ("?" in pattern and not pattern.startswith("http")):
            raise ShardsieveError(
                f"shards in object stores are not listed, got the glob {pattern}; "
                "name them with braces, as in s3://bucket/{000..099}.tar, or in a local .txt list"
            )
        return [pattern]
    if _is_file(pattern):
        return [pattern]
    path = Path(pattern)
    if any(c in pattern for c in "*?["):
        root = Path(path.anchor or ".")
        found = sorted(str(p) for p in root.glob(str(path.relative_to(path.anchor))))
        if not found:
            raise ShardsieveError(f"no shards match {pattern}; check the pattern and the folder")
        for one in found:
            _refuse_folder(Path(one))
        return found
    _refuse_folder(path)
    raise ShardsieveError(f"no shards match {pattern}: no such file; check the path")


def _is_file(name: str) -> bool:
    with suppress(OSError, ValueError):  # a pattern may be longer than a name
        return Path(name).is_file()
    return False


def _refuse_folder(path: Path) -> None:
    if path.is_dir() and str(path) != ".":
        raise ShardsieveError(f"shards must be files, got the folder {path}; name {path}/*.tar")


def local_name(name: str) -> str:
    """Return a `file:` URL as a path, and any other name as it is.

    >>> local_name("file:///data/a.tar"), local_name("s3://data/a.tar")
    ('/data/a.tar', 's3://data/a.tar')
    """
    if not name.startswith("file:"):
        return name
    return re.sub("^/{2,}", "/", name.removeprefix("file:"))


def file_of(url: str) -> str:
    """Return the name of a shard's file, without its folder and what a URL asks for.

    >>> file_of("/data/n01440764.tar"), file_of("https://host/a/n01440764.tar?key=a/b")
    ('n01440764.tar', 'n01440764.tar')
    """
    path = url.partition("?")[0] if "://" in url else url
    return path.rpartition("/")[2]


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardsieveError(
            f"cannot read the shard list {path}: {getattr(error, 'strerror', error)}; "
            "it must be text with one shard a line"
        ) from error
    return [local_name(line.strip()) for line in lines if line.strip() and line[0] != "#"]
