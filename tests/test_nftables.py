"""nftables: messages that the kernel takes, and that nft(8) shows as what they were meant to be."""

import shutil
import socket
import subprocess

import engine
import pytest
from network_help import apart


def table_text():
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout


def batch(*messages):
    engine.nft_batch([*messages])


@pytest.mark.root
def test_a_transaction_is_done_whole_or_not_at_all():
    def inside():
        batch(engine.nft_table("t"), engine.nft_chain("t", "c"))
        with pytest.raises(FileNotFoundError):
            batch(engine.nft_chain("t", "d"), engine.nft_rule("t", "nowhere"))
        batch(engine.nft_chain("t", "c"))
        with pytest.raises(FileNotFoundError):
            batch(engine.nft_rule("t", "d"))
        batch(engine.nft_rule("t", "c", engine.nft_verdict(1)))
        return engine.nft_rules_count("t"), engine.nft_rules_count("none")
    assert apart(inside) == (1, 0)


@pytest.mark.root
def test_many_elements_go_in_one_transaction():
    def inside():
        key = (engine.NFT_PROTO, engine.NFT_PORT)
        elements = [(bytes([6, 0, 0, 0]) + port.to_bytes(2, "big") + bytes(2), b"", b"")
                    for port in range(1, 20001)]
        batch(engine.nft_table("t"), engine.nft_set("t", "s", key),
              *engine.nft_elements("t", "s", elements))
        batch(*engine.nft_elements("t", "s", elements, delete=True))
        with pytest.raises(FileNotFoundError):
            batch(*engine.nft_elements("t", "s", elements[:1], delete=True))
    apart(inside)


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
def test_nft_shows_names_and_verdicts():
    def inside():
        batch(engine.nft_table("t"), engine.nft_set("t", "s", (engine.NFT_IFNAME,)),
              *engine.nft_elements("t", "s", [(b"eth0".ljust(16, b"\0"), b"", b"")]),
              engine.nft_chain("t", "other"),
              engine.nft_chain("t", "c", "filter", engine.NFT_INPUT, 5),
              engine.nft_rule("t", "c", engine.nft_load("iifname"), engine.nft_lookup("s"),
                              engine.nft_load("state"), engine.nft_has(6),
                              engine.nft_verdict(engine.NFT_JUMP, "other")),
              engine.nft_rule("t", "c", engine.nft_verdict(engine.NFT_DROP)))
        return table_text()
    text = apart(inside)
    assert '"eth0"' in text
    assert "iifname @s ct state established,related jump other" in text
    assert "type filter hook input priority filter + 5; policy accept;" in text


@pytest.mark.root
def test_changes_are_news():
    def inside():
        news = engine.nft_news()
        before = engine.nft_news_wait(news, 0)
        batch(engine.nft_table("t"))
        return before, engine.nft_news_wait(news, 1.0)
    assert apart(inside) == (False, True)


def test_lengths_are_those_of_the_kernel():
    message = engine.nft_table("t")
    assert len(message) % 4 == 0
    assert int.from_bytes(message[:4], "little") == len(message)
    assert socket.AF_INET == engine.NFT_IPV4
    assert socket.AF_INET6 == engine.NFT_IPV6


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="iptables is not installed")
@pytest.mark.parametrize("program", ["iptables-legacy", "iptables-nft"])
def test_policies_of_others_are_seen(program):
    def inside():
        out = []
        for policy in ("ACCEPT", "DROP"):
            subprocess.run([program, "-P", "FORWARD", policy], check=True)
            out.append(engine.xtables_drops(engine.NFT_FORWARD)
                       or engine.nft_dropping(engine.NFT_FORWARD))
        return out, engine.nft_dropping(engine.NFT_INPUT)
    dropping = True if program == "iptables-legacy" else [(2, "filter", "FORWARD")]
    assert apart(inside) == ([[], dropping], [])
