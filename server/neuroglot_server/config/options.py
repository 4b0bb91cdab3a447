"""The options of `neuroglot serve`: from one table come flags, variables of the environment and the file's keys."""

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
            self.fail(f"{value!r} is no size: give a number of bytes, or one of KiB, MiB or GiB, such as 512MiB")
        return int(match[1]) * _UNITS[match[2]]


_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class FileType(click.Path):
    """A path; in a configuration file one that is relative is so to that file's folder."""


_ADDRESS, _SIZE, _FILE = _AddressType(), _SizeType(), FileType()


@dataclass(frozen=True)
class Option:
    """One thing that can be set.

    Attributes:
        name: the key in a file; the flag is `--batch-tokens`, the variable `NEUROGLOT_BATCH_TOKENS`.
        type: how it is read; a bool is a pair of flags.
        default: what it is when nobody sets it.
        help: what it does, in a sentence or two.
        setting: the field of Settings or Limits that it sets: it can be set for each model, too. Empty for none.
    """

    name: str
    type: click.ParamType[Any]
    default: Any
    help: str
    setting: str = ""

    @property
    def flag(self) -> str:
        """The flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The variable of the environment."""
        return f"NEUROGLOT_{self.name.upper()}"

    def click_option(self) -> click.Option:
        """The option as click knows it."""
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
    """An option for a field of Settings or Limits, with its default."""
    default = getattr(Limits() if setting in {field.name for field in fields(Limits)} else Settings(), setting)
    return Option(name or setting, option_type, default, explanation, setting)


def _of_transport(name: str, option_type: click.ParamType[Any], explanation: str) -> Option:
    """An option for a field of TransportLimits, with its default."""
    return Option(name, option_type, getattr(TransportLimits(), name), explanation)


OPTIONS = (
    Option("address", _ADDRESS, "127.0.0.1:50051", "Where to listen. Port 0 picks a free one."),
    Option(
        "insecure",
        click.BOOL,
        False,
        "Allow addresses that other machines can reach without TLS or authentication, for calls and for metrics.",
    ),
    Option("tls_certificate", _FILE, None, "The server's certificate (PEM), for TLS."),
    Option("tls_key", _FILE, None, "Its private key (PEM, without a password)."),
    Option(
        "tls_client_ca",
        _FILE,
        None,
        "Authorities (PEM), of one of which every client must show a certificate; its common name is the tenant.",
    ),
    Option(
        "tokens_file",
        _FILE,
        None,
        "File of tenants and hashes of their tokens, see `neuroglot token`; read again when it changes.",
    ),
    Option("bundles_folder", _FILE, None, "Folder from which LoadModel may load; without it nobody may."),
    _of("threads", click.IntRange(min=0), "Threads of ONNX Runtime for each model; 0 is one a core."),
    _of("device", click.STRING, "Where passes run: cpu, cuda or cuda:1."),
    _of(
        "batch_tokens",
        click.IntRange(min=1),
        "Most new tokens of a batch of several rows, padding included; a GPU wants 4096 or more.",
    ),
    _of("batch_bytes", _SIZE, "Most that keys, values, taps, masks and logits of a batch take up."),
    _of("queue_tokens", click.IntRange(min=1), "Most tokens that may wait or run at once, of all callers together."),
    _of("queue_bytes", _SIZE, "Most that requests take up that wait or run."),
    _of("cache_bytes", _SIZE, "Most that prompts take up that are kept for the next request; 0 for none."),
    _of(
        "shared_cache", click.BOOL, "Let tenants see each other's cached prompts: a hit is faster, which can be timed."
    ),
    _of(
        "hang_seconds",
        click.FloatRange(min=0, min_open=True),
        "A pass that runs longer turns the model's health red until it has ended and the probe is answered.",
    ),
    _of(
        "tokens_per_row",
        click.IntRange(min=2),
        "Longest row that is accepted, prompt and answer, in tokens.",
        "row_tokens",
    ),
    _of("rows_per_group", click.IntRange(min=1), "Most rows of a group."),
    _of("variants_per_group", click.IntRange(min=0), "Most variants of a group."),
    _of("groups_in_flight", click.IntRange(min=1), "Most groups of one stream at once."),
    _of_transport("calls", click.IntRange(min=1), "Most calls at once."),
    _of_transport("request_bytes", _SIZE, "Longest request."),
    _of_transport(
        "receive_bytes", _SIZE, "Most that requests take up that are on their way: so many calls are read at once."
    ),
    _of_transport(
        "request_seconds", click.FloatRange(min=0, min_open=True), "How long a call may take to send its first request."
    ),
    _of_transport(
        "transport_bytes",
        _SIZE,
        "How much requests that were read and results that wait to be written may take up, before streams slow down.",
    ),
    _of_transport(
        "reader_seconds",
        click.FloatRange(min=0, min_open=True),
        "How long a capture or a text waits for its reader before its place goes to others.",
    ),
    _of_transport(
        "connections", click.IntRange(min=1), "Most connections at once; each is an open file (`ulimit -n`)."
    ),
    _of_transport(
        "connection_seconds",
        click.FloatRange(min=1),
        "How long a connection takes new calls; those on it go on, and the next ones open another.",
    ),
    _of_transport("idle_seconds", click.FloatRange(min=1), "How long a connection stays open without a call."),
    Option(
        "load_seconds",
        click.FloatRange(min=0, min_open=True),
        Deployment.load_seconds,
        "How long a bundle may take to load, at the start and by LoadModel.",
    ),
    Option(
        "grace",
        click.FloatRange(min=0.0),
        30.0,
        "Seconds for which requests that run may go on after SIGTERM or Ctrl-C; a second signal ends the server now.",
    ),
    Option(
        "metrics_address",
        _ADDRESS,
        None,
        "Where to serve /metrics for Prometheus and /healthz for probes, such as 127.0.0.1:9464.",
    ),
    Option("tracing_endpoint", click.STRING, "", "Collector of OpenTelemetry's spans, such as http://127.0.0.1:4317."),
    Option("log_level", click.Choice(["debug", "info", "warning", "error"]), "info", "What goes to standard error."),
    Option("log_format", click.Choice([str(one) for one in LogFormat]), "text", "How it looks."),
)
"""All options, in the order in which they are shown."""

BY_NAME = {option.name: option for option in OPTIONS}


def with_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings in which the options of these names have these values; options that are no settings are passed over."""
    given = {BY_NAME[name].setting: value for name, value in values.items() if BY_NAME[name].setting}
    of_limits = {name: given.pop(name) for name in list(given) if hasattr(settings.limits, name)}
    return replace(settings, limits=replace(settings.limits, **of_limits), **given)
