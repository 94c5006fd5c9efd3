import pytest


@pytest.mark.parametrize(
    ("text", "size", "last"),
    [
        ("10.0.0.0/8", 1 << 24, "10.255.255.255"),
        ("fd00::/64", 1 << 64, "fd00::ffff:ffff:ffff:ffff"),
    ],
)
def test_a_prefix_counts_its_addresses(engine, text, size, last):
    prefix = engine.prefix_parse(text)
    assert str(prefix) == text
    assert prefix.size == size
    assert engine.ip_text(prefix.packed(size - 1)) == last
    assert prefix.offset(engine.ip_pack(last)) == size - 1
    assert prefix.offset(engine.ip_pack("11.0.0.0")) == -1
    assert prefix.offset(engine.ip_pack("fe00::")) == -1


def test_host_bits_are_kept_until_they_are_masked(engine):
    prefix = engine.prefix_parse("192.168.1.7/24")
    assert str(prefix) == "192.168.1.7/24"
    assert str(prefix.masked) == "192.168.1.0/24"
    assert engine.ip_text(prefix.packed(1)) == "192.168.1.1"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/16", "10.1.0.0/16", False),
        ("0.0.0.0/0", "10.1.0.0/16", True),
        ("fd00::/8", "10.1.0.0/16", False),
        ("fd00::/8", "fd12::/64", True),
    ],
)
def test_overlap(engine, one, other, expected):
    assert engine.prefix_parse(one).overlaps(engine.prefix_parse(other)) is expected


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/08", "10.0.0/8", "10.0.0.0/-1", "x/8", "::/129",
     "10.0.0.0/8/8", "10.0.0.0/+8"],
)
def test_what_is_no_prefix(engine, text):
    with pytest.raises(ValueError, match="invalid"):
        engine.prefix_parse(text)


def test_hardware_addresses(engine):
    for text in ("02:42:ac:11:00:02", "02-42-ac-11-00-02", "0242.ac11.0002"):
        assert engine.mac_text(engine.mac_pack(text)) == "02:42:ac:11:00:02"
    for text in ("", "02:42", "02:42:ac:11:00:0g", "0242ac110002"):
        with pytest.raises(ValueError):
            engine.mac_pack(text)
