"""ports: what a container publishes."""


def test_a_container_that_publishes_nothing(engine):
    assert engine.ports_start(None, None, []) == {}
