"""The options of `neuroglot serve`: one table defines the flags, the environment variables and the file's keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import click

from neuroglot_server.config.address import Address, AddressError
from neuroglot_server.config.deployment import Deployment, LogFormat, TransportLimits
from neuroglot_server.core import Limits, Settings


class _AddressType(click.ParamType[Address]):
    """`HOST:PORT`."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except AddressError as error:
            self.fail(str(error), param, ctx)


class _SizeType(click.ParamType[int]):
    """A number of bytes, `1048576` or `1MiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB|)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size: give a number of bytes, or of KiB, MiB or GiB, such as 512MiB")
        return int(match[1]) * _UNITS[match[2]]


_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class FileType(click.Path):
    """A path. In a configuration file, relative paths are relative to that file's folder."""


_ADDRESS, _SIZE, _FILE = _AddressType(), _SizeType(), FileType()


@dataclass(frozen=True)
class Option:
    """One option of the server.

    Attributes:
        name: the key in a file, such as `batch_tokens`; the flag is then `--batch-tokens`, the environment variable
            `NEUROGLOT_BATCH_TOKENS`.
        type: click's type, which parses the value; a bool becomes a pair of flags.
        default: the value if it is not set.
        help: the `--help` text, a sentence or two.
        setting: the field of Settings or Limits that it sets, which makes it an option of each model, too. Empty for an
            option of the whole server.
    """

    name: str
    type: click.ParamType[Any]
    default: Any
    help: str
    setting: str = ""

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"NEUROGLOT_{self.name.upper()}"

    def click_option(self) -> click.Option:
        """Create the click option."""
        switch = self.type is click.BOOL
        return click.Option(
            [f"{self.flag}/--no-{self.flag[2:]}" if switch else self.flag],
            type=None if switch else self.type,
            default=self.default,
            help=self.help,
            envvar=self.variable,
            show_envvar=True,
            show_default=self.default not in (None, "", False),
        )


def _of(setting: str, option_type: click.ParamType[Any], explanation: str, name: str = "") -> Option:
    """Create an option for a field of Settings or Limits, with the field's default."""
    default = getattr(Limits() if setting in {field.name for field in fields(Limits)} else Settings(), setting)
    return Option(name or setting, option_type, default, explanation, setting)


def _of_transport(name: str, option_type: click.ParamType[Any], explanation: str) -> Option:
    """Create an option for a field of TransportLimits, with the field's default."""
    return Option(name, option_type, getattr(TransportLimits(), name), explanation)


OPTIONS = (
    Option("address", _ADDRESS, "127.0.0.1:50051", "Address to listen on. Port 0 picks a free port."),
    Option(
        "insecure",
        click.BOOL,
        False,
        "Allow non-loopback addresses without TLS or authentication, for gRPC and for metrics.",
    ),
    Option("tls_certificate", _FILE, None, "TLS certificate of the server, with its chain (PEM)."),
    Option("tls_key", _FILE, None, "Private key of the TLS certificate (PEM, without a password)."),
    Option(
        "tls_client_ca",
        _FILE,
        None,
        "Certificate authorities (PEM) for mutual TLS: clients must present a certificate that one of them issued. "
        "Its common name is the tenant.",
    ),
    Option(
        "tokens_file",
        _FILE,
        None,
        "TOML file of tenants, quotas and hashes of tokens (see `neuroglot token`). Reloaded when it changes.",
    ),
    Option(
        "bundles_folder",
        _FILE,
        None,
        "Folder from which LoadModel may load bundles. Without it, LoadModel is disabled.",
    ),
    _of("threads", click.IntRange(min=0), "ONNX Runtime threads per model. 0 means one per core."),
    _of("device", click.STRING, "Device to run on: cpu, cuda or a numbered GPU such as cuda:1."),
    _of(
        "batch_tokens",
        click.IntRange(min=1),
        "Maximum new tokens per batch, padding included; a longer row runs alone. Use 4096 or more on a GPU.",
    ),
    _of("batch_bytes", _SIZE, "Maximum memory per batch: KV cache, captured activations, masks and logits."),
    _of(
        "queue_tokens",
        click.IntRange(min=1),
        "Maximum tokens in flight (queued or running) per model, over all callers.",
    ),
    _of("queue_bytes", _SIZE, "Maximum memory of the requests in flight per model: KV cache, activations and results."),
    _of("cache_bytes", _SIZE, "Maximum memory of the prefix cache and the step cache per model. 0 disables them."),
    _of(
        "shared_cache",
        click.BOOL,
        "Share cached prompts between tenants. Response times then reveal whether another tenant sent a prompt.",
    ),
    _of(
        "hang_seconds",
        click.FloatRange(min=0, min_open=True),
        "Report the model as NOT_SERVING when a pass takes longer, until it ends and the model passes its probe.",
    ),
    _of(
        "tokens_per_row",
        click.IntRange(min=2),
        "Maximum tokens per row, prompt and answer together.",
        "row_tokens",
    ),
    _of("rows_per_group", click.IntRange(min=1), "Maximum rows per group."),
    _of("variants_per_group", click.IntRange(min=0), "Maximum variants per group, not counting the baseline."),
    _of("groups_in_flight", click.IntRange(min=1), "Maximum groups in flight per stream."),
    _of_transport(
        "calls", click.IntRange(min=1), "Maximum concurrent calls. One client machine gets at most half of them."
    ),
    _of_transport("request_bytes", _SIZE, "Maximum size of a request message."),
    _of_transport(
        "receive_bytes",
        _SIZE,
        "Memory budget for requests being received. Limits how many calls are read at once, each counted with the "
        "maximum size of a request.",
    ),
    _of_transport(
        "request_seconds", click.FloatRange(min=0, min_open=True), "Timeout for a call to send its first request."
    ),
    _of_transport(
        "transport_bytes",
        _SIZE,
        "Memory for received requests and unsent results. Above it, streams are processed one group at a time.",
    ),
    _of_transport(
        "reader_seconds",
        click.FloatRange(min=0, min_open=True),
        "Timeout for a client that stops reading results of CaptureActivations or Generate; releases its capacity.",
    ),
    _of_transport(
        "connections",
        click.IntRange(min=1),
        "Maximum concurrent connections. Each takes a file descriptor (`ulimit -n`).",
    ),
    _of_transport(
        "connection_seconds",
        click.FloatRange(min=1),
        "Maximum age of a connection. Running calls continue on it, new calls open a new connection.",
    ),
    _of_transport(
        "idle_seconds", click.FloatRange(min=1), "Idle time after which a connection without calls is closed."
    ),
    Option(
        "load_seconds",
        click.FloatRange(min=0, min_open=True),
        Deployment.load_seconds,
        "Timeout for loading a bundle, at startup and by LoadModel.",
    ),
    Option(
        "grace",
        click.FloatRange(min=0.0),
        30.0,
        "Grace period in seconds for running requests after SIGTERM or Ctrl-C. A second signal stops it at once.",
    ),
    Option(
        "metrics_address",
        _ADDRESS,
        None,
        "Address of the HTTP endpoints /metrics (Prometheus) and /healthz (probes), such as 127.0.0.1:9464.",
    ),
    Option(
        "tracing_endpoint",
        click.STRING,
        "",
        "OTLP endpoint (gRPC) for OpenTelemetry traces, such as http://127.0.0.1:4317.",
    ),
    Option(
        "log_level",
        click.Choice(["debug", "info", "warning", "error"]),
        "info",
        "Minimum level of log messages, on standard error.",
    ),
    Option("log_format", click.Choice([str(log_format) for log_format in LogFormat]), "text", "Format of log lines."),
)
"""All options, in the order of `--help`."""

BY_NAME = {option.name: option for option in OPTIONS}


def with_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings with the values of the named options; ignores options that are not model settings."""
    given = {BY_NAME[name].setting: value for name, value in values.items() if BY_NAME[name].setting}
    of_limits = {name: given.pop(name) for name in list(given) if hasattr(settings.limits, name)}
    return replace(settings, limits=replace(settings.limits, **of_limits), **given)
