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


def pytest_configure(config):
    # numba 0.68 looks up its own finished cache entries when a compiled FFCV pipeline is collected.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:Exception ignored in. <finalize:pytest.PytestUnraisableExceptionWarning",
    )
