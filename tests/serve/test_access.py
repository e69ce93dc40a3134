"""Access control: tokens, host names and origins."""

import pytest

from spherecf.errors import InputError
from spherecf.serve import choose_token, hosts_of
from spherecf.serve.access import Access

TOKEN = "t" * 20


def test_a_token_is_generated_unless_loopback_disables_it() -> None:
    assert choose_token("127.0.0.1", "", without=True) == ""
    assert choose_token("0.0.0.0", TOKEN, without=False) == TOKEN
    first, second = (choose_token("::1", "", without=False) for _ in range(2))
    assert first != second and len(first) >= 43


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "faces.example", ""])
def test_only_loopback_may_disable_the_token(host: str) -> None:
    with pytest.raises(InputError, match="loopback"):
        choose_token(host, "", without=True)
    with pytest.raises(InputError, match="cannot be used together"):
        choose_token("127.0.0.1", TOKEN, without=True)


@pytest.mark.parametrize("token", ["short", "with blank" * 3, "ümlaut" * 4, "line\n" * 5])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(InputError, match="16 ASCII"):
        Access(token, ("localhost",))


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (f"Bearer {TOKEN}", True), (f"bearer {TOKEN}", True), (f"Bearer {TOKEN}x", False), ("Bearer ", False),
        (f"Basic {TOKEN}", False), (TOKEN, False), ("", False), ("Bearer ü", False),
    ],
)  # fmt: skip
def test_token_must_match(header: str, accepted: bool) -> None:
    assert Access(TOKEN, ()).accepts_token({"authorization": header}) is accepted
    assert Access("", ()).accepts_token({"authorization": header})


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("localhost:8080", True), ("LOCALHOST", True), ("127.0.0.1:1", True),
        ("[::1]:8080", True), ("[::1]", True),
        ("evil.example", False), ("localhost.evil.example", False), ("192.0.2.1:8080", False), ("", False),
        ("localhost:evil", False), ("evil.example:8080", False), ("127.0.0.1.nip.example", False),
    ],
)  # fmt: skip
def test_loopback_service_accepts_only_local_host_names(host: str, accepted: bool) -> None:
    assert Access("", hosts_of("127.0.0.1")).allows_host(host) is accepted


def test_public_service_accepts_addresses_and_given_host_names() -> None:
    everywhere = Access(TOKEN, hosts_of("0.0.0.0", ("Faces.example:8443",)))
    assert all(
        map(everywhere.allows_host, ["192.0.2.1:80", "[2001:db8::1]:80", "faces.example", "localhost"])
    )
    assert not everywhere.allows_host("evil.example")
    single_address = Access(TOKEN, hosts_of("2001:db8::7"))
    assert single_address.allows_host("[2001:db8::7]:8080") and not single_address.allows_host("localhost")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True), ({"origin": "http://localhost:8080"}, True), ({"origin": "https://localhost:8080"}, True),
        ({"origin": "http://localhost:9999"}, False), ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "same-origin"}, True), ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False), ({"sec-fetch-site": "cross-site"}, False),
    ],
)  # fmt: skip
def test_requests_from_other_origins_are_recognised(headers: dict[str, str], expected: bool) -> None:
    assert Access("", ()).same_origin({"host": "localhost:8080", **headers}) is expected
