from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st

from fedscale import identity
from fedscale.errors import AccessDenied, ConfigError, ProtocolError, TicketError
from fedscale.identity import Authority, Identity, Role, Ticket

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
ANNA = Identity("heart", Role.NODE, "anna")
HASH = "h" * 43
PKCS8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
names = st.from_regex(identity._NAME, fullmatch=True)


@cache
def numbered_authority(federation: str, number: int) -> Authority:
    return identity.new_authority(federation, NOW)


def authority(federation: str = "heart", number: int = 0) -> Authority:
    """The authority of a federation; another number gives another one of the same name."""
    return numbered_authority(federation, number)


@cache
def key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    return identity.new_key()


def member(who: Identity = ANNA, now: datetime = NOW, hours: float = 24) -> x509.Certificate:
    return authority(who.federation).issue(identity.new_request(key(), who.name), who, now, hours)


def server(*hosts: str, now: datetime = NOW, days: float = 90) -> x509.Certificate:
    return authority().issue_server(key().public_key(), hosts or ("localhost",), now, days)


def pem(certificate: x509.Certificate) -> bytes:
    return identity.certificate_pem(certificate)


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


CA = pem(authority().certificate)


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a", "0", "st-anna.ward_2", "a" * 63])
def test_a_valid_name_is_given_back(name: str) -> None:
    assert identity.valid_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "a" * 64, "a%2fb", "a\0"])
def test_an_invalid_name_names_nothing(name: str) -> None:
    for use in (
        lambda: identity.valid_name(name),
        lambda: Identity(name, Role.NODE, "a"),
        lambda: Identity("a", Role.NODE, name),
        lambda: identity.new_authority(name, NOW),
        lambda: identity.new_request(key(), name),
    ):
        with pytest.raises(ConfigError, match="is not a valid name; use 1 to 63 lower-case letters"):
            use()


@given(names, st.sampled_from(Role), names)
def test_an_identity_survives_its_uri(federation: str, role: Role, name: str) -> None:
    who = Identity(federation, role, name)
    assert who.uri == f"fedscale://{federation}/{role.value}/{name}"
    assert Identity.from_uri(who.uri) == who
    assert type(Identity.from_uri(who.uri).role) is Role


BAD_URIS = """
fedscale:// fedscale://heart/node fedscale://heart/node/ fedscale://heart/root/anna fedscale://heart/NODE/anna fedscale:///node/anna
fedscale://heart/node/anna/x https://heart/node/anna fedscale://heart/node/Anna fedscale://heart//anna FEDSCALE://heart/node/anna
"""


@pytest.mark.parametrize("uri", [*BAD_URIS.split(), "", "fedscale://heart/node/anna\n", " fedscale://heart/node/anna"])
def test_a_uri_of_another_form_is_nobody(uri: str) -> None:
    with pytest.raises(AccessDenied, match="the caller's identity is malformed"):
        Identity.from_uri(uri)


# ----------------------------------------------------------------------------------------------------------------- keys


def test_a_key_survives_its_pem() -> None:
    text = identity.key_pem(key())
    assert text.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert identity.load_key(text).private_numbers() == key().private_numbers()
    assert identity.new_key().private_numbers() != identity.new_key().private_numbers()


BAD_KEYS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "a private key cannot be read"),
    "certificate": (lambda: CA, "a private key cannot be read"),
    "cut": (lambda: identity.key_pem(key())[:-40], "a private key cannot be read"),
    "encrypted": (lambda: key().private_bytes(*PKCS8, serialization.BestAvailableEncryption(b"x")), "a private key cannot be read"),
    "rsa": (lambda: rsa.generate_private_key(65537, 2048).private_bytes(*PKCS8, serialization.NoEncryption()), "of the wrong kind"),
    "other curve": (lambda: ec.generate_private_key(ec.SECP384R1()).private_bytes(*PKCS8, serialization.NoEncryption()), "of the wrong kind"),
}


@pytest.mark.parametrize(("make", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_bad_key_is_refused(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        identity.load_key(make())


def test_the_hash_of_a_key_is_that_of_its_subject_public_key_info() -> None:
    der = key().public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    value = identity.spki_hash(key().public_key())
    assert base64.urlsafe_b64decode(value + "=") == hashlib.sha256(der).digest()
    assert len(value) == 43
    assert value == identity.spki_hash(member().public_key()) != identity.spki_hash(authority().certificate.public_key())


# --------------------------------------------------------------------------------------------------------- certificates


def leaf_purpose(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_authority_is_an_authority_for_ten_years_and_signs_leaves_only() -> None:
    certificate = authority().certificate
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    certificate.verify_directly_issued_by(certificate)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, True, False)
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc.year == NOW.year + 10
    assert authority().federation == "heart"


@pytest.mark.parametrize(
    ("make", "usage", "life"), [(member, identity.CLIENT_AUTH, timedelta(hours=24)), (server, identity.SERVER_AUTH, timedelta(days=90))]
)
def test_a_leaf_carries_the_whole_profile(make: Callable[[], x509.Certificate], usage: x509.ObjectIdentifier, life: timedelta) -> None:
    certificate, ca = make(), authority().certificate
    of = certificate.extensions.get_extension_for_class
    ca_key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.key_identifier
    certificate.verify_directly_issued_by(ca)
    assert of(x509.AuthorityKeyIdentifier).value.key_identifier == ca_key_id
    assert of(x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(key().public_key())
    assert (of(x509.BasicConstraints).critical, of(x509.BasicConstraints).value.ca) == (True, False)
    assert (of(x509.KeyUsage).critical, of(x509.KeyUsage).value.digital_signature, of(x509.KeyUsage).value.key_cert_sign) == (True, True, False)
    assert leaf_purpose(certificate) == [usage]
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (NOW - timedelta(minutes=5), NOW + life)
    assert certificate.public_key() == key().public_key()
    assert certificate.subject != ca.subject == certificate.issuer


def test_another_implementation_of_the_rules_accepts_the_chain() -> None:
    policy = PolicyBuilder().store(Store([authority().certificate])).time(NOW)
    chain = policy.build_server_verifier(x509.DNSName("localhost")).verify(server("localhost", "10.0.0.1"), [])
    client = policy.build_client_verifier().verify(member(), [])
    assert chain[-1] == authority().certificate
    assert client.subjects == [x509.UniformResourceIdentifier(ANNA.uri)]


def test_a_server_certificate_names_its_hosts() -> None:
    names = server("fl.example.org", "my_host", "10.0.0.1", "::1").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "my_host"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]


@pytest.mark.parametrize(
    "host", ["", " ", "a b", "a..b", ".a", "*.example.org", "http://a", "a:1", "a/b", "-a", "a-", "ä.org", "a" * 64, "a." * 127 + "a", "a\n"]
)
def test_a_server_is_given_no_certificate_for_what_is_no_host(host: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name or an IP address"):
        server("localhost", host)


def test_a_server_without_hosts_is_given_none() -> None:
    with pytest.raises(ConfigError, match="at least one host name"):
        authority().issue_server(key().public_key(), [], NOW)


@given(names, st.sampled_from(Role))
def test_a_certificate_names_the_identity_it_was_issued_for(name: str, role: Role) -> None:
    who = Identity("heart", role, name)
    assert identity.identity_of(pem(member(who))) == who


def test_of_a_request_only_the_key_is_used() -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("fedscale://heart/coordinator/eve"), x509.DNSName("localhost")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "other")])
    greedy = x509.CertificateSigningRequestBuilder(subject).add_extension(names, critical=False)
    greedy = greedy.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = authority().issue(greedy.sign(key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM), ANNA, NOW)
    assert identity.identity_of(pem(certificate)) == ANNA
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.subject == member().subject


def request(signer: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(signer, algorithm).public_bytes(serialization.Encoding.PEM)


def stolen_request() -> bytes:
    """A request for somebody else's public key: the key is exchanged after it was signed."""
    der = x509.load_pem_x509_csr(identity.new_request(key(1), "eve")).public_bytes(serialization.Encoding.DER)
    points = [key(n).public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint) for n in (1, 2)]
    assert der.count(points[0]) == 1
    return x509.load_der_x509_csr(der.replace(points[0], points[1])).public_bytes(serialization.Encoding.PEM)


BAD_REQUESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "a certificate request cannot be read"),
    "certificate": (lambda: CA, "a certificate request cannot be read"),
    "cut": (lambda: identity.new_request(key(), "anna")[:-60], "a certificate request cannot be read"),
    "too long": (lambda: identity.new_request(key(), "anna") + b"#" * 16_384, "a certificate request is too long"),
    "not its own key": (stolen_request, "a certificate request is not signed by its own key"),
    "rsa": (lambda: request(rsa.generate_private_key(65537, 2048)), "a certificate request holds a key of the wrong kind"),
    "ed25519": (lambda: request(ed25519.Ed25519PrivateKey.generate()), "a certificate request holds a key of the wrong kind"),
    "other curve": (lambda: request(ec.generate_private_key(ec.SECP384R1())), "a certificate request holds a key of the wrong kind"),
}


@pytest.mark.parametrize(("make", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gets_no_certificate(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ProtocolError) as error:
        authority().issue(make(), ANNA, NOW)
    assert error.value.what == message


def test_an_authority_names_members_of_its_own_federation_only() -> None:
    with pytest.raises(ConfigError, match="the authority of 'heart' cannot name a member of 'lung'"):
        authority().issue(identity.new_request(key(), "anna"), Identity("lung", Role.NODE, "anna"), NOW)


def test_a_leaf_never_outlives_its_authority() -> None:
    end = authority().certificate.not_valid_after_utc
    assert server(now=end - timedelta(days=1)).not_valid_after_utc == end
    assert member(now=end - timedelta(hours=1)).not_valid_after_utc == end
    for issue in (lambda: server(now=end), lambda: member(now=end + timedelta(days=1)), lambda: member(hours=0), lambda: server(days=-1)):
        with pytest.raises(ConfigError, match="a certificate would expire before it is issued"):
            issue()


def test_serial_numbers_differ_and_are_lower_case_hex() -> None:
    certificates = [member(), member(), server(), authority().certificate]
    assert len({identity.serial_of(certificate) for certificate in certificates}) == 4
    assert [int(identity.serial_of(certificate), 16) for certificate in certificates] == [certificate.serial_number for certificate in certificates]
    assert identity.serial_of(certificates[0]) == identity.serial_of(identity.load_certificate(pem(certificates[0]))).lower()


def test_an_authority_survives_its_files() -> None:
    loaded = Authority.load(*authority().to_pems())
    assert loaded.certificate == authority().certificate
    assert loaded.federation == "heart"
    identity.verify_issued(pem(loaded.issue_server(key().public_key(), ["a"], NOW)), CA, NOW)


@pytest.mark.parametrize(
    ("key_text", "certificate", "message"),
    [
        (identity.key_pem(authority(number=1).key), CA, "the authority's key does not belong to its certificate"),
        (identity.key_pem(key()), pem(member()), "the certificate is not that of a federation's authority"),
        (b"", CA, "a private key cannot be read"),
        (identity.key_pem(authority().key), b"", "a certificate cannot be read"),
        (identity.key_pem(authority().key), CA + CA, "a certificate cannot be read"),
    ],
)
def test_an_authority_is_not_loaded_from_what_is_none(key_text: bytes, certificate: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Authority.load(key_text, certificate)


def test_a_private_key_is_never_printed() -> None:
    assert "key" not in repr(authority())
    assert "swordfish" not in repr(Ticket("a:1", "id", "swordfish", HASH))


def forged(*names: x509.GeneralName) -> bytes:
    """A certificate of the right authority with any alternative names; none leaves the extension out."""
    draft = identity._draft(identity._name("heart", "eve"), key().public_key(), NOW, NOW + timedelta(hours=1))
    if names:
        draft = draft.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return pem(identity._sign(draft, authority().certificate.subject, authority().key, authority=False))


URI = x509.UniformResourceIdentifier
NAMELESS = "the caller's certificate names no member of a federation"
NOBODIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "a certificate cannot be read"),
    "noise": (lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate cannot be read"),
    "two": (lambda: pem(member()) * 2, "a certificate cannot be read"),
    "key": (lambda: identity.key_pem(key()), "a certificate cannot be read"),
    "too long": (lambda: pem(member()) + b"#" * 16_384, "a certificate cannot be read"),
    "authority": (lambda: CA, NAMELESS),
    "server": (lambda: pem(server()), NAMELESS),
    "no names": (forged, NAMELESS),
    "two uris": (lambda: forged(URI(ANNA.uri), URI(ANNA.uri)), NAMELESS),
    "uri and host": (lambda: forged(URI(ANNA.uri), x509.DNSName("localhost")), NAMELESS),
    "name of another kind": (lambda: forged(x509.RFC822Name("anna@heart")), NAMELESS),
    "other uri": (lambda: forged(URI("https://heart/node/anna")), "the caller's identity is malformed"),
    "unknown role": (lambda: forged(URI("fedscale://heart/root/anna")), "the caller's identity is malformed"),
}


@pytest.mark.parametrize(("make", "message"), NOBODIES.values(), ids=NOBODIES)
def test_a_certificate_that_names_nobody_is_denied(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(AccessDenied) as error:
        identity.identity_of(make())
    assert error.value.what == message


# ------------------------------------------------------------------------------------------------ issued by the authority


def with_issuer(certificate: x509.Certificate, issuer: Authority) -> bytes:
    """The same certificate, signed by another authority."""
    builder = x509.CertificateBuilder(issuer.certificate.subject, certificate.subject, key().public_key(), certificate.serial_number)
    builder = builder.not_valid_before(certificate.not_valid_before_utc).not_valid_after(certificate.not_valid_after_utc)
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return pem(builder.sign(issuer.key, hashes.SHA256()))


DAY = timedelta(days=1)
LATER = authority().certificate.not_valid_after_utc + DAY
OLD = identity.new_authority("heart", NOW - 5_000 * DAY)
INVALID = "the certificate is not valid now"
CLOCK = "set the clock that is wrong, here or there, and try again with the same ticket"


def life(made: datetime, days: int) -> str:
    """What is said of a certificate that was made then, up to the time by the clock."""
    return f"it is valid from {made - 5 * DAY / 1440:%Y-%m-%d %H:%M} UTC to {made + days * DAY:%Y-%m-%d %H:%M} UTC, and this machine's clock says"


NOT_ISSUED: dict[str, tuple[Callable[[], tuple[bytes, bytes, datetime]], str]] = {
    "another authority": (
        lambda: (pem(authority(number=1).issue_server(key().public_key(), ["a"], NOW)), CA, NOW),
        "the certificate is not signed by the authority's key",
    ),
    "another issuer's name": (
        lambda: (pem(authority("lung").issue_server(key().public_key(), ["a"], NOW)), CA, NOW),
        "the certificate is not signed by the authority's key",
    ),
    "copied extensions": (lambda: (with_issuer(server(), authority(number=1)), CA, NOW), "the certificate is not signed by the authority's key"),
    "signed by a leaf": (
        lambda: (with_issuer(server(), Authority(key(), server())), pem(server()), NOW),
        "the authority's certificate is not one of an authority",
    ),
    "authority signed by another": (
        lambda: (pem(server()), with_issuer(authority().certificate, authority(number=1)), NOW),
        "the authority's certificate is not signed by the authority's key",
    ),
    "authority as leaf": (lambda: (CA, CA, NOW), "the certificate was issued for another use"),
    "member as server": (lambda: (pem(member()), CA, NOW), "the certificate was issued for another use"),
    "no use": (lambda: (forged(x509.DNSName("localhost")), CA, NOW), "the certificate was issued for another use"),
    "expired": (lambda: (pem(server()), CA, NOW + 91 * DAY), f"{INVALID} ({life(NOW, 90)} 2031-08-05 07:08 UTC); {CLOCK}"),
    "not yet": (
        lambda: (pem(server(now=NOW + DAY)), CA, NOW),
        f"{INVALID} ({life(NOW + DAY, 90)} 2031-05-06 07:08 UTC); {CLOCK}",
    ),
    "authority not yet": (
        lambda: (pem(server()), CA, NOW - DAY),
        f"the authority's certificate is not valid now ({life(NOW, 3_653)} 2031-05-05 07:08 UTC); {CLOCK}",
    ),
    "authority expired": (
        lambda: (pem(OLD.issue_server(key().public_key(), ["a"], NOW - 4_000 * DAY)), pem(OLD.certificate), NOW),
        f"the authority's certificate is not valid now ({life(NOW - 5_000 * DAY, 3_653)} 2031-05-06 07:08 UTC); {CLOCK}",
    ),
    "no leaf": (lambda: (b"", CA, NOW), "a certificate cannot be read (expected exactly one in PEM form)"),
    "no authority": (lambda: (pem(server()), b"", NOW), "a certificate cannot be read (expected exactly one in PEM form)"),
    "a second authority slipped in": (
        lambda: (pem(server()), CA + pem(authority(number=1).certificate), NOW),
        "a certificate cannot be read (expected exactly one in PEM form)",
    ),
}


@pytest.mark.parametrize(("make", "message"), NOT_ISSUED.values(), ids=NOT_ISSUED)
def test_what_the_authority_did_not_issue_is_refused(make: Callable[[], tuple[bytes, bytes, datetime]], message: str) -> None:
    with pytest.raises(TicketError) as error:
        identity.verify_issued(*make())
    assert str(error.value) == message


def test_a_key_of_an_unknown_kind_is_an_error_like_any_other() -> None:
    """The curve's number in the certificate of the authority is changed to one that nobody knows."""
    prime256v1 = bytes.fromhex("06082a8648ce3d030107")
    der = authority().certificate.public_bytes(serialization.Encoding.DER)
    assert der.count(prime256v1) == 1
    strange = pem_of(der.replace(prime256v1, prime256v1[:-1] + b"\x63"))
    mine = identity.new_ticket("localhost:1", identity.spki_hash(authority().certificate.public_key()))
    for use in (lambda: mine.verify_server(pem(server()), strange, NOW), lambda: identity.verify_issued(strange, CA, NOW)):
        with pytest.raises(TicketError, match="a certificate cannot be read"):
            use()


def test_what_the_authority_issued_is_accepted_from_five_minutes_before_until_the_end() -> None:
    for now in (NOW - timedelta(minutes=5), NOW, NOW + 90 * DAY):
        identity.verify_issued(pem(server()), CA, now)
    identity.verify_issued(pem(member()), CA, NOW, identity.CLIENT_AUTH)
    with pytest.raises(TicketError, match="another use"):
        identity.verify_issued(pem(server()), CA, NOW, identity.CLIENT_AUTH)


@given(st.integers(0), st.integers(1, 255))
def test_no_edit_of_a_certificate_is_accepted_or_crashes(at: int, change: int) -> None:
    der = bytearray(member().public_bytes(serialization.Encoding.DER))
    der[at % len(der)] ^= change
    edited = pem_of(bytes(der))
    with pytest.raises(TicketError):
        identity.verify_issued(edited, CA, NOW, identity.CLIENT_AUTH)
    with contextlib.suppress(AccessDenied):
        assert identity.identity_of(edited).federation


# -------------------------------------------------------------------------------------------------------------- tickets


def seal(text: str | bytes, version: int = 1) -> str:
    """A ticket with a good checksum around any text."""
    raw = text.encode() if isinstance(text, str) else text
    return f"fs{version}." + base64.urlsafe_b64encode(raw + hashlib.sha256(raw).digest()[:4]).decode().rstrip("=")


def ticket(address: str = "fl.example.org:9443") -> Ticket:
    return Ticket(address, "0f3a", "swordfish-_9", HASH)


def cut(characters: int) -> str:
    return str(ticket())[:-characters]


def with_address(address: str) -> str:
    return seal(f"0f3a.s.{HASH}.{address}")


words = st.from_regex(identity._WORD, fullmatch=True)
hosts = st.one_of(st.from_regex(identity._HOST, fullmatch=True), st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"))


@given(hosts, st.integers(1, 65_535), words, words, st.from_regex(identity._HASH, fullmatch=True))
def test_a_ticket_survives_its_token(host: str, port: int, ticket_id: str, secret: str, ca_hash: str) -> None:
    made = Ticket(f"{host}:{port}", ticket_id, secret, ca_hash)
    assert Ticket.parse(str(made)) == made
    assert made.endpoint == (host.strip("[]"), port)


def test_the_format_of_tickets_is_frozen() -> None:
    token = seal(f"0f3a.swordfish-_9.{HASH}.fl.example.org:9443")
    assert str(ticket()) == token
    assert token.startswith("fs1.MGYzYS5zd29yZGZpc2gtXzku")
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_spaces_and_line_breaks_of_a_mail_do_no_harm() -> None:
    token = str(ticket())
    assert Ticket.parse(f"  {token[:2]}\n{token[2:50]}\r\n\t{token[50:]} \n") == ticket()


@pytest.mark.parametrize("around", ['"{}"', "'{}'", "<{}>", "({})", "`{}`", "\ufeff{}\r\n", "> {}\n", "fedscale node join {}", "\u201c{}\u201d"])
def test_what_programs_put_around_a_ticket_does_no_harm(around: str) -> None:
    token = str(ticket())
    assert Ticket.parse(around.format(token)) == ticket()
    assert Ticket.parse(around.format("\n> ".join((token[:76], token[76:])))) == ticket()


NO_TICKET = "this is not a ticket (a ticket starts with 'fs1.'); paste the whole ticket as you received it"
CUT = "the ticket is cut short or was altered (its checksum does not fit); paste the whole ticket as you received it"
VERSION = "the ticket is of version {} (this release reads version 1); install the release that the coordinator runs"
MALFORMED = "the ticket is malformed (its id, secret or authority's hash has characters or a length it cannot have)"
ADDRESS = "the ticket has a bad address (expected host:port with a port from 1 to 65535)"
ADDRESSES = """
a :1 a: a:0 a:65536 a:-1 a:1x a:0x1 a:\u0661 http://a:1 a/b:1 a:1:2 ::1:443 [::1] []:1 [a]:1 [::1%eth0]:1 user@a:1 -a:1 a..b:1 \u00e4:1 a:000001
"""
BAD_ADDRESSES = [*ADDRESSES.split(), "", "a b:1", "a\n:1", "a:1\n", "a" * 64 + ":1", "a." * 127 + "a:1"]
BAD_TICKETS: dict[str, tuple[Callable[[], str], str]] = {
    "nothing": (lambda: "", NO_TICKET),
    "word": (lambda: "hello", NO_TICKET),
    "prefix alone": (lambda: "fs1", NO_TICKET),
    "no prefix": (lambda: str(ticket())[4:], NO_TICKET),
    "upper case": (lambda: str(ticket()).upper(), NO_TICKET),
    "digits of another script": (lambda: "fs\u0661" + str(ticket())[3:], NO_TICKET),
    "endless": (lambda: "fs1." + "A" * 2045, NO_TICKET),
    "too new": (lambda: seal("whatever", version=2), VERSION.format(2)),
    "too old": (lambda: seal("whatever", version=0), VERSION.format(0)),
    "much too new": (lambda: "fs999.", VERSION.format(999)),
    "empty": (lambda: "fs1.", CUT),
    **{f"without the last {n}": (partial(cut, n), CUT) for n in (1, 2, 3, 4, 5, 60)},
    "without the middle": (lambda: str(ticket())[:40] + str(ticket())[44:], CUT),
    "one more": (lambda: str(ticket()) + "A", CUT),
    "padded": (lambda: str(ticket()) + "=", CUT),
    "twice": (lambda: str(ticket()) * 2, CUT),
    "altered": (lambda: str(ticket()).replace("MGYz", "MGYy"), CUT),
    "foreign character": (lambda: str(ticket())[:20] + "!" + str(ticket())[20:], CUT),
    "not ascii": (lambda: str(ticket())[:20] + "\u0430" + str(ticket())[21:], CUT),
    "no fields": (lambda: seal(""), MALFORMED),
    "three fields": (lambda: seal(f"0f3a.s.{HASH}"), ADDRESS),
    "no text": (lambda: seal(b"\xff\xfe"), MALFORMED),
    "no id": (lambda: seal(f".s.{HASH}.a:1"), MALFORMED),
    "no secret": (lambda: seal(f"0f3a..{HASH}.a:1"), MALFORMED),
    "long secret": (lambda: seal(f"0f3a.{'s' * 65}.{HASH}.a:1"), MALFORMED),
    "short hash": (lambda: seal(f"0f3a.s.{HASH[1:]}.a:1"), MALFORMED),
    "hash in other characters": (lambda: seal(f"0f3a.s.{HASH[1:]}+.a:1"), MALFORMED),
    **{f"address {address!a}": (partial(with_address, address), ADDRESS) for address in BAD_ADDRESSES},
}


@pytest.mark.parametrize(("make", "message"), BAD_TICKETS.values(), ids=BAD_TICKETS)
def test_a_bad_ticket_is_refused_with_the_exact_reason(make: Callable[[], str], message: str) -> None:
    with pytest.raises(TicketError) as error:
        Ticket.parse(make())
    assert str(error.value) == message


def test_a_ticket_may_lead_to_several_coordinators() -> None:
    made = replace(ticket(), address="a.example:1,[::1]:2,b:3")
    read = Ticket.parse(str(made))
    assert read == made
    assert read.endpoint == ("a.example", 1)
    assert [(place.address, place.secret) for place in read.places()] == [(address, made.secret) for address in ("a.example:1", "[::1]:2", "b:3")]
    assert ticket().places() == (ticket(),)


@pytest.mark.parametrize("address", ["a:1,", ",a:1", "a:1,b", "a:1, b:2"])
def test_each_address_of_a_ticket_is_checked(address: str) -> None:
    with pytest.raises(TicketError, match="bad address"):
        replace(ticket(), address=address)


@given(st.text(max_size=300))
def test_no_text_is_a_ticket_by_chance(text: str) -> None:
    for token in (text, "fs1." + text, f"{ticket()}.{text}"):
        with pytest.raises(TicketError) as error:
            Ticket.parse(token)
        assert "swordfish" not in str(error.value)


@given(st.integers(4), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
def test_one_wrong_character_is_always_found(at: int, character: str) -> None:
    token = str(ticket())
    at = 4 + at % (len(token) - 4)
    edited = token[:at] + character + token[at + 1 :]
    if edited == token:
        assert Ticket.parse(edited) == ticket()
    else:
        with pytest.raises(TicketError, match="cut short or was altered"):
            Ticket.parse(edited)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("a:\u0661", "0f3a", "s", HASH), ADDRESS),
        (("\u00e4:1", "0f3a", "s", HASH), ADDRESS),
        (("a:1", "0f.3a", "s", HASH), MALFORMED),
        (("a:1", "0f3a", "s.", HASH), MALFORMED),
        (("a:1", "0f3a", "s\n", HASH), MALFORMED),
        (("a:1", "0f3a", "s", HASH + "="), MALFORMED),
    ],
)
def test_a_ticket_that_could_not_be_written_cannot_be_made(fields: tuple[str, str, str, str], message: str) -> None:
    with pytest.raises(TicketError) as error:
        Ticket(*fields)
    assert str(error.value) == message


def test_new_tickets_are_fresh_and_short_enough_for_a_mail() -> None:
    made = [identity.new_ticket("fl.example.org:9443", HASH) for _ in range(50)]
    assert len({one.secret for one in made}) == len({one.id for one in made}) == 50
    assert all(len(one.secret) == 32 and len(str(one)) <= 200 and Ticket.parse(str(one)) == one for one in made)
    with pytest.raises(TicketError, match="bad address"):
        identity.new_ticket("fl.example.org", HASH)


def test_a_secret_is_known_by_its_hash_alone() -> None:
    stored = identity.secret_hash("swordfish")
    assert stored == hashlib.sha256(b"swordfish").hexdigest()
    assert stored not in {identity.secret_hash(other) for other in ("Swordfish", "", "swordfish ", "sw\u00f6rdfish", stored)}


def test_a_ticket_trusts_the_server_of_its_own_authority_only() -> None:
    mine = identity.new_ticket("localhost:1", identity.spki_hash(authority().certificate.public_key()))
    other = authority(number=1)
    forged_leaf = pem(other.issue_server(key().public_key(), ["localhost"], NOW))
    mine.verify_server(pem(server()), CA, NOW)
    with pytest.raises(TicketError, match=r"^localhost:1: the server is not the one this ticket was made for"):
        mine.verify_server(forged_leaf, pem(other.certificate), NOW)
    with pytest.raises(TicketError, match="not signed by the authority's key"):
        mine.verify_server(forged_leaf, CA, NOW)
    with pytest.raises(TicketError, match="another use"):
        mine.verify_server(pem(member()), CA, NOW)
    with pytest.raises(TicketError, match="cannot be read"):
        mine.verify_server(pem(server()), CA + pem(other.certificate), NOW)
