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
