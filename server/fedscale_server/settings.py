"""Settings of a server: the file ``server.toml`` in its home, where every key has a default."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscale.errors import ConfigError
from fedscale.identity import valid_name

FILE = "server.toml"
DATABASE = "server.db"

Port = Annotated[int, Field(ge=0, le=65_535)]


class Settings(BaseModel):
    """How a server listens and where it remembers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="address to listen at; 0.0.0.0 or :: for all of the machine's")
    port: Port = Field(8470, description="port for members, who prove themselves by certificate; 0 lets the system choose")
    enrolment_port: Port = Field(8471, description="port for those who have only a ticket; 0 lets the system choose")
    web: bool = Field(True, description="the dashboard in a browser; false for none")
    web_host: str = Field("127.0.0.1", min_length=1, description="address the dashboard listens at; beyond this machine it speaks TLS only")
    web_port: Port = Field(8472, description="port of the dashboard, or any other where that is taken; 0 lets the system choose")
    hosts: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1"), min_length=1, description="names and addresses members reach the server by; the first one stands in tickets"
    )
    database: str = Field("", repr=False, description="postgresql://user@host/name or sqlite:///path; empty for SQLite in this folder")
    uploads_at_once: int = Field(4, ge=1, le=1024, description="answers received at the same time; the others wait")
    upload_bytes: int = Field(1 << 30, ge=16 << 20, description="most memory for answers that are on their way; who comes then is told to come later")
    durability: Literal["spool", "resend"] = Field(
        "spool", description="spool keeps a round's answers on disk, encrypted, until it is closed; resend asks for them again after a crash"
    )
    replicas: bool = Field(False, description="one of several servers on the same database and blobs, which take over from each other")
    lease_seconds: float = Field(10.0, ge=1, le=3600, description="how long a server that leads is waited for before another one takes over")
    blobs: str = Field("", description="where all replicas find models and bundles: s3://bucket/prefix or a shared folder; empty for this home alone")
    blobs_endpoint: str = Field("", description="URL of the object store where it is not Amazon's; credentials come from the environment")
    sinks: tuple[Literal["csv", "tensorboard", "mlflow"], ...] = Field(
        (), description="where the curves of all runs go as they go on: csv, tensorboard, mlflow; each in a folder of its name in curves/RUN"
    )
    mlflow_uri: str = Field("", repr=False, description="an MLflow tracking server or database; empty for a local one for each run")
    federation: str = Field("fedscale", description="part of everybody's identity; cannot change once the server is made")

    @property
    def address(self) -> str:
        """``host:port`` that members connect to."""
        return _joined(self.hosts[0], self.port)

    @property
    def enrolment_address(self) -> str:
        """``host:port`` that tickets point to."""
        return _joined(self.hosts[0], self.enrolment_port)

    def to_toml(self) -> str:
        """The file that ``load`` reads, each setting with what it means."""
        values = self.model_dump()
        return "\n".join(f"# {field.description}\n{tomli_w.dumps({key: values[key]})}" for key, field in Settings.model_fields.items())

    def url(self, home: Path) -> str:
        """The database's URL for a server that lives in ``home``."""
        return self.database or f"sqlite:///{home.absolute() / DATABASE}"


def load(home: Path, overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the settings of the server that lives, or will live, in ``home``.

    Args:
        home: its folder; without a file there, every setting has its default.
        overrides: settings that win over the file; those that are ``None`` were not given.

    Raises:
        ConfigError: the file or a setting is wrong, with file and line.
    """
    path = home / FILE
    try:
        text = path.read_text(encoding="utf-8")
        stored = tomllib.loads(text)
    except FileNotFoundError:
        text, stored = "", {}
    except (OSError, ValueError) as error:
        raise ConfigError("the settings cannot be read", where=str(path), why=str(error)) from None
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        settings = Settings.model_validate(stored | given)
    except ValidationError as error:
        raise _explained(error, str(path), text, given) from None
    if settings.port == settings.enrolment_port != 0:
        raise ConfigError("'port' and 'enrolment_port' are the same", where=str(path), hint="each listens on its own")
    if settings.web and settings.web_port in {settings.port, settings.enrolment_port} - {0}:
        raise ConfigError("'web_port' is another port too", where=str(path), hint="each listens on its own")
    valid_name(settings.federation)
    if settings.replicas and not (settings.database.startswith("postgresql") and settings.blobs):
        hint = "set 'database' to a PostgreSQL and 'blobs' to an object store or a shared folder"
        raise ConfigError("replicas need a database and blobs that all of them can reach", where=str(path), hint=hint)
    return settings


def _joined(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _explained(error: ValidationError, file: str, text: str, given: Mapping[str, object]) -> ConfigError:
    """The first problem of a validation as an error people can act on."""
    first = error.errors(include_input=False)[0]
    key = str(first["loc"][0])
    line = next((number for number, row in enumerate(text.splitlines(), 1) if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", row)), 0)
    where = "options" if key in given else f"{file}:{line}" if line else file
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Settings.model_fields, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(Settings.model_fields)}"
        return ConfigError(f"'{key}' is not a setting", where=where, hint=hint)
    return ConfigError(f"'{key}' is not valid", where=where, why=first["msg"][0].lower() + first["msg"][1:])
