from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import pytest

from neuroglot_server.config import file_changes
from neuroglot_server.config.tenants import NewToken, Tenant, Tenants, TenantsError, new_token
from neuroglot_server.core import Quota

ALICE, BOB, SPARE = new_token(), new_token(), new_token()


def written(folder: Path, text: str) -> Path:
    file = folder / "tokens.toml"
    file.write_text(text, encoding="utf-8")
    return file


def hashes(*tokens: NewToken) -> str:
    return ", ".join(f'"{token.sha256}"' for token in tokens)


def test_a_token_identifies_its_tenant_and_the_file_has_only_its_hash(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        f"""
        [tenants.alice]
        token_sha256 = [{hashes(ALICE, SPARE)}]
        queue_tokens = 1000
        tokens_per_minute = 60_000
        may_manage_models = true
        [tenants.bob]
        token_sha256 = [{hashes(BOB)}]
        """,
    )
    tenants = Tenants(file)
    alice = tenants.of_token(ALICE.token)
    assert alice == tenants.of_token(SPARE.token) == tenants.named("alice")
    assert (alice.name, alice.quota, alice.may_manage_models) == ("alice", Quota(1000, 60_000), True)
    bob = tenants.of_token(BOB.token)
    assert (bob.name, bob.quota, bob.may_manage_models) == ("bob", Quota(), False)
    assert tenants.of_token(ALICE.sha256) is None  # the hash in the file is not accepted as a token
    assert tenants.of_token("") is None
    assert tenants.named("carol") == Tenant("carol")


def test_tokens_are_new_each_time_and_their_hash_is_plain_sha256() -> None:
    made = [new_token() for _ in range(100)]
    assert len({token.token for token in made}) == 100
    assert all(len(token.token) >= 43 for token in made)
    assert made[0].sha256 == hashlib.sha256(made[0].token.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants = 3", "expected tables"),
        ("[tenant.alice]", "has tenant, expected tables"),
        ("[tenants.alice]\ntoken = 'x'", "tenants.alice.token is unknown, expected one of token_sha256, queue_tokens"),
        ("[tenants.alice]\ntoken_sha256 = 'x'", "tenants.alice.token_sha256 must be a list of hashes"),
        ("[tenants.alice]\ntoken_sha256 = ['secret']", "neuroglot token alice"),
        ("[tenants.alice]\nqueue_tokens = 0", "tenants.alice.queue_tokens is 0, expected a whole number of at least 1"),
        ("[tenants.alice]\nqueue_tokens = true", "tenants.alice.queue_tokens is True"),
        ("[tenants.alice]\nmay_manage_models = 'yes'", "expected true or false"),
        ("[tenants]\nalice = 1", "tenants.alice is 1, expected a table"),
        ("[tenants", "is not valid TOML"),
        (
            f"[tenants.a]\ntoken_sha256 = [{hashes(BOB)}]\n[tenants.b]\ntoken_sha256 = [{hashes(BOB)}]",
            "a and b have the same token",
        ),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(TenantsError, match=re.escape(message)) as caught:
        Tenants(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenantsError, match=r"cannot read .*missing: No such file"):
        Tenants(tmp_path / "missing")


def test_changes_apply_at_once_and_an_invalid_file_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_changes, "_SECONDS_BETWEEN_CHECKS", 0.0)
    file = written(tmp_path, f"[tenants.alice]\ntoken_sha256 = [{hashes(ALICE)}]")
    tenants = Tenants(file)
    assert tenants.of_token(BOB.token) is None

    written(tmp_path, f"[tenants.bob]\ntoken_sha256 = [{hashes(BOB)}]\nqueue_tokens = 5")
    assert tenants.of_token(BOB.token).quota.queue_tokens == 5
    assert tenants.of_token(ALICE.token) is None

    with caplog.at_level(logging.ERROR):
        written(tmp_path, "[tenants.bob")
        assert tenants.of_token(BOB.token).name == "bob"
        assert tenants.of_token(BOB.token).name == "bob"
        file.unlink()
        assert tenants.of_token(BOB.token).name == "bob"
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [("is not valid TOML" in line, "cannot read" in line) for line in errors] == [(True, False), (False, True)]

    replacement = tmp_path / "new"
    replacement.write_text(f"[tenants.alice]\ntoken_sha256 = [{hashes(ALICE)}]")
    replacement.replace(file)
    assert tenants.of_token(ALICE.token).name == "alice"
