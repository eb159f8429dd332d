"""Which release this is: what stands in the stores that it writes."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("shardsieve")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "none"
