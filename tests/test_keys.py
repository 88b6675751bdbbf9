from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import LedgerError
from fairsisa.sisa.keys import Key, open_key
from fairsisa.sisa.once import create_once

KEY = Key(bytes(range(32)))
secret_bytes = st.binary(min_size=32, max_size=32)
ids = st.text(st.characters(exclude_categories=["Cs"]))


def rfc2104(secret: bytes, message: bytes) -> bytes:
    # HMAC written out from its definition; the second path beside the hmac module
    inner, outer = (bytes(byte ^ pad for byte in secret.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    return hashlib.sha256(outer + hashlib.sha256(inner + message).digest()).digest()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@given(secret_bytes, ids)
def test_hide_is_hmac_under_a_subkey_of_the_kind(secret, identifier):
    subkey = rfc2104(secret, b"fairsisa hide example 1")
    assert Key(secret).hide("example", identifier) == rfc2104(subkey, identifier.encode()).hex()


@given(st.lists(ids))
def test_hide_all_hides_each(identifiers):
    assert KEY.hide_all("subject", iter(identifiers)) == [KEY.hide("subject", one) for one in identifiers]


@given(ids, ids, secret_bytes)
def test_other_ids_kinds_and_keys_hide_elsewhere(one, other, secret):
    hidden = {KEY.hide(kind, identifier) for kind in ("example", "subject", "request") for identifier in {one, other}}
    assert len(hidden) == 3 * len({one, other})
    assert (Key(secret).hide("example", one) in hidden) == (secret == KEY.secret)


@given(st.binary(), st.binary())
def test_a_signature_matches_its_own_message_alone(message, other):
    signature = KEY.sign(message)
    assert KEY.matches(message, signature)
    assert KEY.matches(other, signature) == (other == message)
    assert not Key(bytes(32)).matches(message, signature)


@pytest.mark.parametrize("signature", ["", "0" * 64, "é", "\ud800"])
def test_a_foreign_signature_does_not_match(signature):
    assert not KEY.matches(b"message", signature)


def test_signing_hiding_and_the_fingerprint_use_different_subkeys():
    values = {KEY.sign(b"a"), KEY.hide("sign", "a"), KEY.hide("a", "a"), KEY.fingerprint}
    assert len(values) == 4
    assert KEY.hide("sign", "a") != hmac.digest(KEY.secret, b"a", "sha256").hex()


def test_the_secret_is_not_shown():
    shown = repr(KEY) + str(KEY) + f"{KEY}" + KEY.fingerprint
    assert KEY.secret.hex() not in shown
    assert repr(KEY.secret) not in shown
    assert len(KEY.fingerprint) == 64
    assert pickle.loads(pickle.dumps(KEY)) == KEY  # noqa: S301 - our own bytes


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_has_32_bytes(length):
    with pytest.raises(ValueError, match=f"Expected a secret of 32 bytes, got {length}"):
        Key(bytes(length))


def test_one_str_is_no_collection_of_ids():
    with pytest.raises(ValueError, match="a collection of ids, got no kind or a single str"):
        KEY.hide_all("example", "abc")
    with pytest.raises(ValueError, match="Expected a kind"):
        KEY.hide("", "abc")


# On disk


def test_a_key_is_made_once_and_read_back(tmp_path):
    folder = tmp_path / "a" / "keys"
    made = open_key(folder, "one", create=True)
    assert open_key(folder, "one", create=True) == open_key(folder, "one", create=False) == made
    assert open_key(folder, "two", create=True) != made
    assert sorted(path.name for path in folder.iterdir()) == ["one.key", "two.key"]
    assert (mode_of(folder), mode_of(folder / "one.key")) == (0o700, 0o600)


def test_a_key_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        open_key(tmp_path / "keys", "one", create=True)
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "keys"), mode_of(tmp_path / "keys" / "one.key")) == (0o700, 0o600)


def test_a_missing_key_is_to_be_restored(tmp_path):
    with pytest.raises(LedgerError, match=r"Expected a key in .*keys/one\.key, found none: restore that file"):
        open_key(tmp_path / "keys", "one", create=False)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    made = open_key(tmp_path, "one", create=True)
    (tmp_path / "one.key").chmod(mode)
    with pytest.raises(LedgerError, match=rf"owner alone, got mode {mode:o}: run `chmod 600 .*one\.key`"):
        open_key(tmp_path, "one", create=False)
    (tmp_path / "one.key").chmod(0o600)
    assert open_key(tmp_path, "one", create=False) == made


@pytest.mark.parametrize("damage", [b"", b"00", b"g" * 64 + b"\n", b"0" * 64, b"0" * 64 + b"\n\n", b"\xff" * 65])
def test_a_damaged_key_is_to_be_restored(tmp_path, damage):
    open_key(tmp_path, "one", create=True)
    (tmp_path / "one.key").write_bytes(damage)
    with pytest.raises(LedgerError, match=rf"one\.key to hold 64 hexadecimal digits .* got {len(damage)} bytes"):
        open_key(tmp_path, "one", create=True)
    assert (tmp_path / "one.key").read_bytes() == damage  # never replaced: it may be mended yet


@pytest.mark.parametrize("name", ["", "../one", "a/b", "one.key", "\0", "a b"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="Expected a key's name of letters, digits"):
        open_key(tmp_path, name, create=True)


def test_a_folder_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "keys").write_text("")
    with pytest.raises(LedgerError, match=r"keys/one\.key.*move away the file that stands where a folder should"):
        open_key(tmp_path / "keys", "one", create=True)


@pytest.mark.parametrize("call", ["fsync", "link", "mkdir"])
def test_a_refusing_disk_is_explained_and_leaves_nothing(tmp_path, monkeypatch, call):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(LedgerError, match=r"Could not create .*one\.key: .*No space left.*; free disk space, then"):
            open_key(tmp_path / "keys", "one", create=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_of_many_that_create_a_file_at_once_one_succeeds(tmp_path):
    barrier, won = threading.Barrier(8), []

    def create(index: int) -> None:
        barrier.wait()
        if create_once(tmp_path / "file", f"{index}".encode()):
            won.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "file").read_text()] == [str(index) for index in won]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_killed_processes_left_goes_once_it_is_old(tmp_path):
    (tmp_path / "clock").touch()
    now = (tmp_path / "clock").stat().st_mtime
    hexadecimal = "0123456789abcdef"
    ages = {
        f".old.key.{hexadecimal}.partial": 61,
        f".young.key.{hexadecimal}.partial": 50,
        f".tomorrow.key.{hexadecimal}.partial": -86400,
        f".old.sqlite.{hexadecimal}.partial": 61,
        ".old.key.partial": 61,
        "old.key": 61,
    }
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (now - age, now - age))
    assert create_once(tmp_path / "new.key", b"whole")
    left = {path.name for path in tmp_path.iterdir()} - {"clock", "new.key"}
    assert left == ages.keys() - {f".old.key.{hexadecimal}.partial"}
    assert (tmp_path / "new.key").read_bytes() == b"whole"


def test_who_loses_the_leftover_of_a_long_sleep_is_told(tmp_path, monkeypatch):
    def slept(source, target):
        Path(source).unlink()
        raise FileNotFoundError(2, "No such file or directory", source)

    monkeypatch.setattr(os, "link", slept)
    with pytest.raises(LedgerError, match=r"Could not create .*file: .*No such file or directory.*then run it again"):
        create_once(tmp_path / "file", b"whole")
    assert list(tmp_path.iterdir()) == []
