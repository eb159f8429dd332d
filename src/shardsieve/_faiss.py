"""faiss, where it is whole: its packages for CPUs and for GPUs write over each other's files."""

from shardsieve._errors import MissingDependencyError

try:
    import faiss
except (ImportError, AttributeError, OSError) as error:
    raise MissingDependencyError(
        f"faiss cannot be imported ({error}); of its packages, which spoil each other, have one: "
        "pip uninstall -y faiss-cpu faiss-gpu-cu12, then pip install either"
    ) from error

__all__ = ["faiss"]
