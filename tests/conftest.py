import gc
import multiprocessing
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from servers import CREDENTIALS, S3Server

# The same examples on every machine: a red CI must be red here too.
settings.register_profile(
    "shardsieve",
    deadline=None,
    derandomize=True,
    max_examples=100,
    # Drawing is slow on a machine at work: that says nothing about a test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("shardsieve")

# Where tools/setup.sh goes on without one of these, it says so; CI has both. By what needs it.
OPTIONAL = {
    "ffcv": re.compile(r"^(from|import) .*\b(ffcv|numba)", re.MULTILINE),
    "torchvision": re.compile("torchvision"),
}
MISSING = [name for name in OPTIONAL if not find_spec(name)]
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("t*.py")
    if any(OPTIONAL[name].search(path.read_text()) for name in MISSING)
]


def pytest_report_header():
    return [f"{name} is not installed: its tests are left out" for name in MISSING]


@pytest.fixture
def childless():
    """No worker process of an earlier test is left: one may be held by garbage alone."""
    gc.collect()
    for child in multiprocessing.active_children():
        child.join(60)
    assert multiprocessing.active_children() == []


@pytest.fixture
def s3(monkeypatch):
    """An S3 of its own for every test."""
    server = S3Server()
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()
