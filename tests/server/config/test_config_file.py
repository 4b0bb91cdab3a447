from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from neuroglot.cli import main
from neuroglot_server.config.config_file import ConfigurationError, read
from neuroglot_server.config.options import OPTIONS, with_settings
from neuroglot_server.core import Limits, Settings

FULL = """
address = "127.0.0.1:0"
batch_tokens = 111
queue_bytes = "2GiB"
cache_bytes = 0
hang_seconds = 5
shared_cache = true
log_format = "json"
tokens_file = "tokens.toml"

[models.first]
bundle = "bundles/first"
shared_cache = false
row_tokens = 77

["models"."a name"]
bundle = "/elsewhere"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "neuroglot.toml"
    file.write_text(text, encoding="utf-8")
    return file


def printed(*arguments: object, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["serve", "--print-config", *map(str, arguments)], env=environment)


def test_a_file_is_read_with_its_paths_relative_to_it(tmp_path: Path) -> None:
    content = read(written(tmp_path, FULL))
    assert content.values["batch_tokens"] == 111
    assert content.values["queue_bytes"] == 2 * 2**30
    assert content.values["hang_seconds"] == 5.0
    assert content.values["shared_cache"] is True
    assert content.values["tokens_file"] == str(tmp_path / "tokens.toml")
    first, other = content.models["first"], content.models["a name"]
    assert first == (tmp_path / "bundles" / "first", {"shared_cache": False, "row_tokens": 77})
    assert other == (Path("/elsewhere"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "batch_token = 3",
            "batch_token is unknown, did you mean batch_tokens? It has to be one of address, insecure,",
        ),
        ("xyzzy = 3", "xyzzy is unknown, it has to be one of address,"),
        ("batch_tokens = '3'", 'batch_tokens is "3", expected a whole number'),
        ("batch_tokens = true", "batch_tokens is true, expected a whole number"),
        ("batch_tokens = 1.5", "batch_tokens is 1.5, expected a whole number"),
        ("batch_tokens = 0", "batch_tokens is 0: 0 is not in the range x>=1"),
        ("grace = -1.0", "grace is -1.0: -1.0 is not in the range"),
        ("insecure = 'no'", 'insecure is "no", expected true or false'),
        ("queue_bytes = '3 parsecs'", "queue_bytes is \"3 parsecs\": '3 parsecs' is not a size"),
        ("address = 50051", "address is 50051, expected a text"),
        ("address = 'nowhere'", "address is \"nowhere\": 'nowhere' is not an address: give HOST:PORT"),
        ("log_level = 'loud'", "is not one of 'debug', 'info'"),
        ("models = 3", "models is 3, expected tables"),
        ("[models]\nfirst = 'bundle'", 'models.first is "bundle", expected a table [models.first]'),
        ("[models.first]\nthreads = 1", "models.first.bundle is not set, expected the path of a bundle"),
        (
            "[models.first]\nbundle = 'b'\naddress = 'x:1'",
            "models.first.address is unknown, it has to be one of bundle,",
        ),
        (
            "[models.first]\nbundle = 'b'\nbatch_tokens = 'x'",
            'models.first.batch_tokens is "x", expected a whole number',
        ),
        ("batch_tokens", "is not valid TOML"),
    ],
)
def test_errors_name_the_file_the_key_and_what_is_expected(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_flags_override_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "batch_tokens = 1\nqueue_tokens = 1\nrow_tokens = 11\ninsecure = true")
    environment = {"NEUROGLOT_BATCH_TOKENS": "2", "NEUROGLOT_QUEUE_TOKENS": "2", "NEUROGLOT_CONFIG": str(file)}
    result = printed("--batch-tokens", 3, "--no-insecure", environment=environment)
    assert result.exit_code == 0, result.output
    effective = tomllib.loads(result.output)
    assert [effective[key] for key in ("batch_tokens", "queue_tokens", "row_tokens", "insecure")] == [3, 2, 11, False]
    sources = dict(line.split("  # ") for line in result.output.splitlines() if "  # " in line)
    assert sources["batch_tokens = 3"] == "--batch-tokens"
    assert sources["queue_tokens = 2"] == "NEUROGLOT_QUEUE_TOKENS"
    assert sources["row_tokens = 11"] == str(file)
    assert sources["threads = 0"] == "default"


def test_the_printed_configuration_gives_the_same_configuration(tmp_path: Path) -> None:
    bundle = tmp_path / "given"
    first = printed(bundle, "--config", written(tmp_path, FULL))
    again = printed("--config", written(tmp_path, first.output))
    assert first.exit_code == again.exit_code == 0
    ours, theirs = tomllib.loads(first.output), tomllib.loads(again.output)
    assert ours == theirs
    assert ours["queue_bytes"] == 2 * 2**30
    assert ours["models"] == {
        "first": {"bundle": str(tmp_path / "bundles" / "first"), "shared_cache": False, "row_tokens": 77},
        "a name": {"bundle": "/elsewhere"},
        "given": {"bundle": str(bundle)},
    }


def test_errors_of_the_file_and_of_variables_are_one_line(tmp_path: Path) -> None:
    result = printed("--config", written(tmp_path, "threads = -1"))
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'neuroglot.toml'}: threads is -1: -1 is not in the range x>=0.\n"
    result = printed(environment={"NEUROGLOT_THREADS": "many"})
    assert result.exit_code == 2
    assert "NEUROGLOT_THREADS" in result.stderr


def test_every_setting_can_be_set_and_reaches_the_model() -> None:
    settable = {option.setting: option for option in OPTIONS if option.setting}
    assert settable.keys() == (vars(Settings()).keys() | vars(Limits()).keys()) - {"limits"}
    values = {}
    for option in settable.values():
        default = option.default
        values[option.name] = (
            not default if isinstance(default, bool) else "cuda:1" if default == "cpu" else default + 1
        )
    changed = with_settings(Settings(), values)
    for setting, option in settable.items():
        assert getattr(changed.limits if setting in vars(Limits()) else changed, setting) == values[option.name]
    assert with_settings(changed, {}) == changed
    assert with_settings(changed, {"batch_tokens": 5}).limits == changed.limits


def test_nothing_to_serve_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2
    assert "there is nothing to serve: give a BUNDLE" in result.stderr
