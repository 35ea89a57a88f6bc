"""Certificates of the tests: self-signed, made anew, trusted by nobody else.

Rule: a client trusts exactly the one of its test, so that a connection that opens proves which one was shown.
"""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Certificate:
    """A self-signed one for 127.0.0.1 with its key, as the two files a gateway is given."""

    def __init__(self, directory: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
        built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
            now + datetime.timedelta(days=30)
        )
        signed = built.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
        self.der = signed.public_bytes(serialization.Encoding.DER)
        self.pem = signed.public_bytes(serialization.Encoding.PEM)
        self.key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.file, self.key_file = directory / f"{name}.pem", directory / f"{name}.key"
        self.write(self.file, self.key_file)

    def write(self, file: Path, key_file: Path) -> None:
        """Renamed into place, as tools that renew certificates do it."""
        for path, data in ((file, self.pem), (key_file, self.key_pem)):
            replace(path, data)

    @property
    def settings(self) -> dict[str, str]:
        return {"SERVER_TLS_CERT": str(self.file), "SERVER_TLS_KEY": str(self.key_file)}

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.pem.decode())


def replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.rename(path)
