from importlib.util import find_spec

from hypothesis import HealthCheck, settings

# The same examples on every machine: a red CI must be red here too.
settings.register_profile(
    "shardsieve",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("shardsieve")

# Without root, tools/setup.sh goes on without ffcv and says so; CI has it.
collect_ignore = [] if find_spec("ffcv") else ["test_beton.py", "test_ffcv.py"]


def pytest_report_header():
    return [] if find_spec("ffcv") else "ffcv is not installed: its tests are left out"
