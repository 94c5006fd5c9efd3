"""resolver: a container's resolv.conf."""


def test_what_was_asked_for_takes_the_hosts_place(engine):
    host = {"NetworkMode": "bridge", "Dns": ["1.2.3.4"], "DnsSearch": ["a", "b"], "DnsOptions": []}
    lines = engine.resolver_conf(host, False)[0].splitlines()
    assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 1.2.3.4"]
    assert "search a b" in lines
