"""firewall: rules of networks."""


def test_the_rules_of_a_network_may_be_asked_for_twice(engine):
    network = engine.Network(("n", "n", "host", 1, engine.network_document("host")))
    for _ in range(2):
        engine.firewall_network_begin(None, network)
    engine.firewall_network_end(None, network)
