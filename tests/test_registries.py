"""Where a registry is: endpoints in order, who may be insecure, proxies, certificates."""

from __future__ import annotations

import json

import engine
import pytest


def settings(**more):
    return {**engine.CONFIGURATION, **{key.replace("_", "-"): value for key, value in more.items()}}


def urls(text, made=None, **more):
    found = engine.registry_endpoints(engine.reference_parse(text), made or settings(), **more)
    return [endpoint.url for endpoint in found]


def test_docker_io_is_the_hub_after_its_mirrors():
    assert urls("busybox") == ["https://registry-1.docker.io"]
    made = settings(registry_mirrors=["https://m.example/", "http://127.0.0.1:5000"])
    assert urls("busybox", made) == [
        "https://m.example", "http://127.0.0.1:5000", "https://registry-1.docker.io"]
    assert urls("busybox", made, push=True) == ["https://registry-1.docker.io"]
    assert urls("example.org/x", made) == ["https://example.org"]


def test_loopback_needs_no_tls_others_when_they_are_listed():
    assert urls("127.0.0.1:5000/x") == ["https://127.0.0.1:5000", "http://127.0.0.1:5000"]
    assert urls("localhost:5000/x") == ["https://localhost:5000", "http://localhost:5000"]
    assert urls("[::1]:5000/x") == ["https://[::1]:5000", "http://[::1]:5000"]
    assert urls("10.1.2.3/x") == ["https://10.1.2.3"]
    for listed in ("10.1.2.3", "10.0.0.0/8", "http://10.1.2.3"):
        made = settings(insecure_registries=[listed])
        assert urls("10.1.2.3/x", made) == ["https://10.1.2.3", "http://10.1.2.3"], listed
    assert urls("11.1.2.3/x", settings(insecure_registries=["10.0.0.0/8"])) == ["https://11.1.2.3"]


def test_the_longest_prefix_of_the_mirror_table_counts():
    made = settings(registry_mirror_table={
        "ghcr.io": ["https://a.example"], "ghcr.io/org": ["https://b.example/base"],
        "docker.io/library": ["https://c.example"]})
    assert urls("ghcr.io/x/y", made) == ["https://a.example", "https://ghcr.io"]
    assert urls("ghcr.io/org/y", made) == ["https://b.example/base", "https://ghcr.io"]
    assert urls("ghcr.io/organ/y", made) == ["https://a.example", "https://ghcr.io"]
    assert urls("busybox", made) == ["https://c.example", "https://registry-1.docker.io"]
    assert urls("ghcr.io/org/y", made, push=True) == ["https://ghcr.io"]


@pytest.mark.parametrize(("host", "port", "no_proxy", "spared"), [
    ("a.example", 443, "", False),
    ("a.example", 443, "*", True),
    ("a.example", 443, "example", True),
    ("a.example", 443, ".example", True),
    ("example", 443, ".example", False),
    ("example", 443, "example", True),
    ("a.example", 443, "b.example, a.example", True),
    ("a.example", 443, "a.example:80", False),
    ("a.example", 80, "a.example:80", True),
    ("10.1.1.1", 443, "10.0.0.0/8", True),
    ("11.1.1.1", 443, "10.0.0.0/8", False),
    ("127.0.0.9", 443, "", True),
    ("localhost", 443, "", True),
    ("::1", 443, "", True),
])
def test_proxies_and_who_is_spared(host, port, no_proxy, spared):
    made = settings(https_proxy="proxy.example:3128", no_proxy=no_proxy)
    assert engine.proxy_of("https", host, port, made) == (
        "" if spared else "http://proxy.example:3128")


def test_the_environment_names_proxies_too(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://one.example")
    monkeypatch.setenv("https_proxy", "http://two.example")
    made = settings()
    assert engine.proxy_of("http", "a.example", 80, made) == "http://one.example"
    assert engine.proxy_of("https", "a.example", 443, made) == "http://two.example"
    made = settings(http_proxy="http://three.example")
    assert engine.proxy_of("http", "a.example", 80, made) == "http://three.example"


def test_hosts_and_ports():
    assert engine.host_split("a:5000", 1) == ("a", 5000)
    assert engine.host_split("[::1]:5000", 1) == ("::1", 5000)
    assert engine.host_split("[::1]", 1) == ("::1", 1)
    assert engine.host_split("a", 1) == ("a", 1)
    for wrong in ("a:x", "a:99999"):
        with pytest.raises(engine.InvalidParameter, match="invalid port"):
            engine.host_split(wrong, 1)


def test_without_a_daemon_dockers_file_tells_about_registries(tmp_path, monkeypatch):
    file = tmp_path / "daemon.json"
    monkeypatch.setattr(engine, "DAEMON_FILE", str(file))
    run = str(tmp_path / "run")
    assert engine.registry_settings(run)["registry-mirrors"] == []
    file.write_text(json.dumps({"registry-mirrors": ["https://m.example"], "debug": True,
                                "insecure-registries": "wrong"}))
    made = engine.registry_settings(run)
    assert made["registry-mirrors"] == ["https://m.example"]
    assert made["insecure-registries"] == []
    assert made["debug"] is False
    for damaged in ("{", "[]", "null"):
        file.write_text(damaged)
        assert engine.registry_settings(run)["registry-mirrors"] == []


def test_certificates_of_a_host_come_in_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CERTS_DIRECTORY", str(tmp_path))
    directory = tmp_path / "a.example:5000"
    directory.mkdir()
    (directory / "client.cert").write_text("x")
    endpoint = engine.RegistryEndpoint("https://a.example:5000")
    with pytest.raises(engine.InvalidParameter, match="missing key client.key for client"):
        endpoint.context
    (directory / "client.cert").unlink()
    (directory / "client.key").write_text("x")
    with pytest.raises(engine.InvalidParameter, match="missing client certificate client.cert"):
        endpoint.context
    (directory / "client.key").unlink()
    (directory / "ca.crt").write_text("no certificate")
    with pytest.raises(engine.InvalidParameter, match="ca.crt"):
        endpoint.context
