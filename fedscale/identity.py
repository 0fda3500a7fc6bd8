"""Who is who: names, keys, certificates and enrolment tickets.

A federation has one certificate authority. A server proves itself with a certificate for its host names, everybody else
with a short-lived certificate that carries one URI, ``fedscale://federation/role/name``. A private key never leaves
the machine that made it: it asks for a certificate with a signing request, and a ticket, handed over once by hand, says
which server to ask and the hash of the authority's key that this server must prove.

Nothing here opens a socket or reads a clock: ``now`` is an argument, always with a time zone.
Sources: RFC 5280 (profile), RFC 2986 (requests), RFC 7469 section 2.4 (hash of a key), SPIFFE X.509-SVID (URI names).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedscale.errors import AccessDenied, ConfigError, FedscaleError, ProtocolError, TicketError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SKEW = timedelta(minutes=5)
AUTHORITY_DAYS = 3_653
MAX_PEM = 16_384
MAX_TICKET = 2_048
MAX_PORT = 65_535
TICKET_VERSION = 1
PASTE = "paste the whole ticket as you received it"

_NAME = "[a-z0-9][a-z0-9._-]{0,62}"
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]")
_WORD = re.compile("[A-Za-z0-9_-]{1,64}")
_WRAPPING = re.compile("[\\s<>()\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{ZERO WIDTH NO-BREAK SPACE}\N{ZERO WIDTH SPACE}]")
_HASH = re.compile("[A-Za-z0-9_-]{43}")
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
_UNUSABLE = (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


# ---------------------------------------------------------------------------------------------------------------- names


class Role(StrEnum):
    """What the holder of a certificate is in its federation."""

    NODE = "node"
    COORDINATOR = "coordinator"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"


_URI = re.compile(f"fedscale://({_NAME})/({'|'.join(Role)})/({_NAME})")


def valid_name(name: str) -> str:
    """The name itself, if it can name a federation or a member of one.

    Raises:
        ConfigError: not 1 to 63 lower-case letters, digits, dots, dashes and underscores, the first a letter or digit.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{name[:80]!r} is not a valid name",
            hint="use 1 to 63 lower-case letters, digits, dots, dashes and underscores, the first a letter or digit",
        )
    return name


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of a federation; the only thing a server believes about a caller."""

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        """Refuse names that could not be written in a URI."""
        valid_name(self.federation)
        valid_name(self.name)

    @property
    def uri(self) -> str:
        """``fedscale://<federation>/<role>/<name>``."""
        return f"fedscale://{self.federation}/{self.role}/{self.name}"

    @classmethod
    def from_uri(cls, uri: str) -> Identity:
        """Read ``uri`` back.

        Raises:
            AccessDenied: not exactly that form.
        """
        match = _URI.fullmatch(uri)
        if not match:
            raise AccessDenied("the caller's identity is malformed", why="expected fedscale://<federation>/<role>/<name>")
        return cls(match[1], Role(match[2]), match[3])


# ----------------------------------------------------------------------------------------------------------------- keys


def new_key() -> PrivateKey:
    """A fresh private key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """The private key as unencrypted PKCS #8 PEM: whoever writes it to disk must write it with mode 0600."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_key(pem: bytes) -> PrivateKey:
    """Read what ``key_pem`` wrote.

    Raises:
        ConfigError: not an unencrypted private key on P-256.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _UNREADABLE:
        raise ConfigError("a private key cannot be read", why="expected one in PEM form, not encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("a private key is of the wrong kind", why="only keys on the curve P-256 are used")
    return key


def spki_hash(public_key: CertificatePublicKeyTypes) -> str:
    """SHA-256 over the key's SubjectPublicKeyInfo in DER, as 43 characters of unpadded base64url."""
    return _base64(hashlib.sha256(public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).digest())


def new_request(key: PrivateKey, identity_name: str) -> bytes:
    """A certificate signing request in PEM, signed with ``key``; the name is a wish that the authority need not grant."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, valid_name(identity_name))])
    return x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(csr_pem: bytes) -> PublicKey:
    """The public key of a request, once the request has proved that its sender holds the private one.

    Raises:
        ProtocolError: the request is malformed, not signed by its own key, or its key is not on P-256.
    """
    if len(csr_pem) > MAX_PEM:
        raise ProtocolError("a certificate request is too long", why=f"the limit is {MAX_PEM} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, proved = request.public_key(), request.is_signature_valid
    except _UNREADABLE:
        raise ProtocolError("a certificate request cannot be read", why="expected one in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("a certificate request holds a key of the wrong kind", why="only keys on the curve P-256 are signed")
    if not proved:
        raise ProtocolError("a certificate request is not signed by its own key")
    return key


# --------------------------------------------------------------------------------------------------------- certificates


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_certificate(pem: bytes, error: type[FedscaleError] = ConfigError) -> x509.Certificate:
    """Read exactly one certificate; a second one in the same text could be trusted without ever being looked at.

    Raises:
        FedscaleError: of the class ``error``; not one PEM certificate.
    """
    unreadable = error("a certificate cannot be read", why="expected exactly one in PEM form")
    if len(pem) > MAX_PEM or pem.count(b"-----BEGIN") != 1:
        raise unreadable
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()  # parsed only when asked for: a key of an unknown kind shall fail here and nowhere else
    except _UNREADABLE:
        raise unreadable from None
    return certificate


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number in lower-case hex, the key of the revocation list."""
    return f"{certificate.serial_number:x}"


def identity_of(cert_pem: bytes) -> Identity:
    """Whom a certificate names. That the certificate was issued by the federation's authority is TLS's part to check.

    Raises:
        AccessDenied: unreadable, or its alternative names are anything but one identity URI.
    """
    names = _extension(load_certificate(cert_pem, AccessDenied), x509.SubjectAlternativeName)
    if names is None or len(list(names)) != 1 or not (uris := names.get_values_for_type(x509.UniformResourceIdentifier)):
        raise AccessDenied("the caller's certificate names no member of a federation", hint="join with a ticket to get one that does")
    return Identity.from_uri(uris[0])


def verify_issued(leaf_pem: bytes, ca_pem: bytes, now: datetime, usage: x509.ObjectIdentifier = SERVER_AUTH) -> None:
    """Check that an authority issued a certificate for ``usage`` (by default: to serve) and that both are valid now.

    The usage matters: without it a member's certificate, issued by the same authority, could pose as the server.

    Raises:
        TicketError: any of it is not so.
    """
    ca, leaf = load_certificate(ca_pem, TicketError), load_certificate(leaf_pem, TicketError)
    if not _is_authority(ca):
        raise TicketError("the authority's certificate is not one of an authority")
    for certificate, what in ((ca, "the authority's certificate"), (leaf, "the certificate")):
        try:
            certificate.verify_directly_issued_by(ca)
        except (*_UNREADABLE, InvalidSignature):
            raise TicketError(f"{what} is not signed by the authority's key") from None
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            begins, ends = (f"{at:%Y-%m-%d %H:%M} UTC" for at in (certificate.not_valid_before_utc, certificate.not_valid_after_utc))
            why = f"it is valid from {begins} to {ends}, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
            raise TicketError(
                f"{what} is not valid now", why=why, hint="set the clock that is wrong, here or there, and try again with the same ticket"
            )
    usages = _extension(leaf, x509.ExtendedKeyUsage)
    if usages is None or usage not in usages:
        raise TicketError("the certificate was issued for another use")


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """An extension of the certificate; None when it has none that can be understood."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except _UNUSABLE:
        return None


def _is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate's key may sign other certificates."""
    limits = _extension(certificate, x509.BasicConstraints)
    return limits is not None and limits.ca


def _name(federation: str, name: str, role: str = "") -> x509.Name:
    """A subject people can read; machines go by the alternative names alone."""
    parts = ((NameOID.ORGANIZATION_NAME, federation), (NameOID.ORGANIZATIONAL_UNIT_NAME, role), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts if text])


def _host_name(host: str) -> x509.GeneralName:
    """A host as a server certificate writes it: an IP address or a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{host[:80]!r} is not a host name or an IP address") from None
        return x509.DNSName(host)


def _draft(subject: x509.Name, key: PublicKey, now: datetime, until: datetime) -> x509.CertificateBuilder:
    """What every certificate says about its own key."""
    return (
        x509.CertificateBuilder(subject_name=subject, public_key=key, serial_number=x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign(draft: x509.CertificateBuilder, issuer: x509.Name, key: PrivateKey, *, authority: bool) -> x509.Certificate:
    """Complete a draft with what ties it to its issuer and limits what its own key may sign."""
    usage = x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        draft.issuer_name(issuer)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """A federation's certificate authority: the key that signs and the certificate everybody trusts."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def federation(self) -> str:
        """The name of the federation it signs for."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    def to_pems(self) -> tuple[bytes, bytes]:
        """The private key and the certificate, each in PEM."""
        return key_pem(self.key), certificate_pem(self.certificate)

    @classmethod
    def load(cls, key_pem: bytes, cert_pem: bytes) -> Authority:
        """Read what ``to_pems`` gave.

        Raises:
            ConfigError: unreadable, not an authority's certificate, or key and certificate do not belong together.
        """
        key, certificate = load_key(key_pem), load_certificate(cert_pem)
        if not _is_authority(certificate) or not certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME):
            raise ConfigError("the certificate is not that of a federation's authority")
        if key.public_key() != certificate.public_key():
            raise ConfigError("the authority's key does not belong to its certificate")
        return cls(key, certificate)

    def issue_server(self, key_public: PublicKey, hosts: Sequence[str], now: datetime, days: float = 90) -> x509.Certificate:
        """A certificate to serve under ``hosts``, DNS names and IP addresses, for ``days``.

        Raises:
            ConfigError: no host, a malformed one, or no time left to be valid.
        """
        if not hosts:
            raise ConfigError("a server certificate needs at least one host name or IP address")
        names = x509.SubjectAlternativeName([_host_name(host) for host in hosts])
        extensions = (names, x509.ExtendedKeyUsage([SERVER_AUTH]))
        return self._issue(_name(self.federation, "fedscale server"), key_public, extensions, now, timedelta(days=days))

    def issue(self, csr_pem: bytes, identity: Identity, now: datetime, hours: float = 24) -> x509.Certificate:
        """A certificate that lets the sender of a request call as ``identity`` for ``hours``.

        Of the request only the public key is used, after its signature has proved that the sender holds the private one.

        Raises:
            ProtocolError: the request is malformed, not signed by its own key, or its key is not on P-256.
            ConfigError: the identity is of another federation, or no time is left to be valid.
        """
        if identity.federation != self.federation:
            raise ConfigError(f"the authority of '{self.federation}' cannot name a member of '{identity.federation}'")
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
        extensions = (names, x509.ExtendedKeyUsage([CLIENT_AUTH]))
        subject = _name(self.federation, identity.name, identity.role)
        return self._issue(subject, requested_key(csr_pem), extensions, now, timedelta(hours=hours))

    def _issue(
        self, subject: x509.Name, key: PublicKey, extensions: Sequence[x509.ExtensionType], now: datetime, life: timedelta
    ) -> x509.Certificate:
        """Sign a leaf; it never outlives the authority."""
        until = min(now + life, self.certificate.not_valid_after_utc)
        if until <= now:
            raise ConfigError("a certificate would expire before it is issued", hint="check its lifetime, the authority's and this machine's clock")
        draft = _draft(subject, key, now, until)
        for extension in extensions:
            draft = draft.add_extension(extension, critical=False)
        return _sign(draft, self.certificate.subject, self.key, authority=False)


def new_authority(federation: str, now: datetime) -> Authority:
    """A fresh key with its self-signed certificate, valid for ten years, that may sign leaves and no further authority."""
    key, name = new_key(), _name(valid_name(federation), "fedscale authority")
    draft = _draft(name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
    return Authority(key, _sign(draft, name, key, authority=True))


# -------------------------------------------------------------------------------------------------------------- tickets


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a coordinator hands to a hospital, once and by hand, so that its node can join.

    ``str(ticket)`` is one token to copy and paste, ``fs1.`` and base64url of ``id.secret.ca_hash.address`` with a 4-byte checksum.

    Args:
        address: ``host:port`` of the enrolment port; an IPv6 address stands in brackets. Of several coordinators, with commas between.
        id: which ticket this is; no secret.
        secret: proves at the enrolment port that the ticket was handed to the caller; never logged, stored only as its hash.
        ca_hash: ``spki_hash`` of the authority's key.
    """

    address: str
    id: str
    secret: str = field(repr=False)
    ca_hash: str

    def __post_init__(self) -> None:
        """Refuse fields that could not be written in a token, or not be used once read."""
        if not _WORD.fullmatch(self.id) or not _WORD.fullmatch(self.secret) or not _HASH.fullmatch(self.ca_hash):
            raise TicketError("the ticket is malformed", why="its id, secret or authority's hash has characters or a length it cannot have")
        for address in self.address.split(","):
            _endpoint(address)

    def places(self) -> tuple[Ticket, ...]:
        """The same ticket for each of its addresses."""
        return tuple(replace(self, address=address) for address in self.address.split(","))

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host, without brackets, and port of the first address: what opens a socket."""
        return _endpoint(self.address.partition(",")[0])

    def __str__(self) -> str:
        """The token; it holds the secret."""
        fields = f"{self.id}.{self.secret}.{self.ca_hash}.{self.address}".encode()
        return f"fs{TICKET_VERSION}.{_base64(fields + _checksum(fields))}"

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read a token back; spaces, line breaks, quotes and brackets that mail programs and shells add are ignored, and so is the command before it.

        Raises:
            TicketError: not a ticket, of another version, cut or altered, or with a bad address.
        """
        match = re.fullmatch(r"(?:fedscalenodejoin)?fs([0-9]{1,3})\.(.*)", _WRAPPING.sub("", text))
        if not match or len(text) > MAX_TICKET:
            raise TicketError("this is not a ticket", why=f"a ticket starts with 'fs{TICKET_VERSION}.'", hint=PASTE)
        if int(match[1]) != TICKET_VERSION:
            raise TicketError(
                f"the ticket is of version {int(match[1])}",
                why=f"this release reads version {TICKET_VERSION}",
                hint="install the release that the coordinator runs",
            )
        ticket_id, _, rest = _payload(match[2]).partition(".")
        secret, _, rest = rest.partition(".")
        ca_hash, _, address = rest.partition(".")
        return cls(address, ticket_id, secret, ca_hash)

    def verify_server(self, leaf_pem: bytes, ca_pem: bytes, now: datetime) -> None:
        """Check, before the secret is sent, that the server behind ``leaf_pem`` is the one the ticket was made for.

        Raises:
            TicketError: the authority is another one than the ticket names, or it did not issue the server's certificate.
        """
        if not hmac.compare_digest(spki_hash(load_certificate(ca_pem, TicketError).public_key()), self.ca_hash):
            raise TicketError(
                "the server is not the one this ticket was made for",
                where=self.address,
                why="its authority has another key",
                hint="do not retry; tell the coordinator that somebody may be in between",
            )
        verify_issued(leaf_pem, ca_pem, now)


def new_ticket(address: str, ca_hash: str) -> Ticket:
    """A ticket with a fresh id and a fresh secret of 192 random bits.

    Raises:
        TicketError: the address is not ``host:port``.
    """
    return Ticket(address, secrets.token_hex(8), secrets.token_urlsafe(24), ca_hash)


def secret_hash(secret: str) -> str:
    """SHA-256 in hex, all that a server stores; a slow hash would add nothing, the secret is random and cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _endpoint(address: str) -> tuple[str, int]:
    """``host:port`` or ``[IPv6]:port`` in two."""
    host, _, port = address.rpartition(":")
    bracketed = _IPV6.fullmatch(host)
    if not (bracketed or _HOST.fullmatch(host)) or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= MAX_PORT:
        raise TicketError("the ticket has a bad address", why="expected host:port with a port from 1 to 65535")
    return bracketed[1] if bracketed else host, int(port)


def _payload(body: str) -> str:
    """The text inside a token's body, once its checksum has shown it whole."""
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        raw = b""
    # The decoder skips characters it does not know; encoding again shows whether there were any.
    if _base64(raw) != body or _checksum(raw[:-4]) != raw[-4:]:
        raise TicketError("the ticket is cut short or was altered", why="its checksum does not fit", hint=PASTE)
    return raw[:-4].decode("ascii", "replace")


def _checksum(fields: bytes) -> bytes:
    """Four bytes against slips of the hand; forgery is stopped by the secret and the authority's hash."""
    return hashlib.sha256(fields).digest()[:4]


def _base64(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
