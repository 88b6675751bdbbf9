from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fairsisa.data.sources import SourceFile, github_url, locate, read_source
from fairsisa.errors import ChecksumError, DataError

CONTENT = b"id,label\n" + b"1,yes\n" * 30_000


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    server: http.server.ThreadingHTTPServer
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://127.1:{self.server.server_port}/whole")
            self.end_headers()
            return
        if self.path not in ("/whole", "/torn"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[: len(CONTENT) // 2])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in http.server
        del format, args


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server: http.server.ThreadingHTTPServer) -> SourceFile:
    return SourceFile("corpus/table.csv.gz", f"http://127.0.0.1:{server.server_port}/whole", sha256(CONTENT))


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_download_lands_verified_under_its_plain_name(served: SourceFile, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = locate(served, cache=tmp_path, report=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert files_under(tmp_path) == ["corpus/table.csv"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 1


def test_a_cached_file_needs_no_network(
    served: SourceFile, server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    assert read_source(served, cache=tmp_path) == read_source(served, cache=tmp_path) == CONTENT
    assert Handler.requests == ["/whole"]


def test_a_torn_download_leaves_nothing_and_may_be_repeated(served: SourceFile, tmp_path: Path) -> None:
    torn = replace(served, url=served.url.replace("/whole", "/torn"))
    for _ in range(2):
        with pytest.raises(DataError, match=r"ended after 90,004 of 180,009 bytes.*FAIRSISA_DATA"):
            locate(torn, cache=tmp_path)
        assert files_under(tmp_path) == []
    assert read_source(served, cache=tmp_path) == CONTENT


def test_a_changed_upstream_is_refused_and_not_kept(served: SourceFile, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match=rf"whole: expected content with {sha256(b'old')}, got {sha256(CONTENT)}"):
        locate(replace(served, checksum=sha256(b"old")), cache=tmp_path)
    assert files_under(tmp_path) == []


def test_a_missing_page_is_refused(served: SourceFile, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Cannot download .*404.*set FAIRSISA_DATA to a folder that holds corpus/table"
    ):
        locate(replace(served, url=served.url + "/no"), cache=tmp_path)


def test_without_network_the_message_names_the_cure(served: SourceFile, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=r"Cannot download .*refused.*Connect to the network, or set FAIRSISA_DATA"):
        locate(replace(served, url=f"http://127.0.0.1:{port}/whole"), cache=tmp_path, timeout=2.0)
    assert files_under(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(
    served: SourceFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[bytes] = []

    def interrupted(partial: Path, target: Path) -> None:
        assert target == tmp_path / "corpus" / "table.csv"
        whole.append(partial.read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            locate(served, cache=tmp_path)
    assert whole == [CONTENT]
    assert files_under(tmp_path) == []
    assert read_source(served, cache=tmp_path) == CONTENT


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://127.0.0.1/a", "data:,abc", "/etc/hostname"])
def test_only_https_and_files_are_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected an https or file address"):
        locate(SourceFile("a", url, sha256(b"")), cache=tmp_path)


def test_a_redirect_to_an_unsafe_address_is_refused(served: SourceFile, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected an https or file address, got http://127\.1"):
        locate(replace(served, url=served.url.replace("/whole", "/moved")), cache=tmp_path)
    assert files_under(tmp_path) == []


def test_what_is_prepared_is_what_is_verified_and_written(tmp_path: Path) -> None:
    upstream = tmp_path / "upstream.csv"
    upstream.write_bytes(b"name,age\nada,36\n")
    source = SourceFile(
        "c/t.csv.gz", upstream.as_uri(), sha256(b"age\n36\n"), prepare=lambda content: content.replace(b"name,", b"")
    )
    with pytest.raises(ChecksumError, match="has changed at its source"):
        locate(source, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    final = replace(source, prepare=lambda content: content.replace(b"name,", b"").replace(b"ada,", b""))
    assert locate(final, cache=tmp_path / "cache").read_bytes() == b"age\n36\n"


@pytest.mark.parametrize("stored_as", ["c/t.csv.gz", "c/t.csv"])
def test_a_data_folder_is_read_first_compressed_or_not(stored_as: str, tmp_path: Path) -> None:
    path = tmp_path / "root" / stored_as
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(CONTENT) if stored_as.endswith(".gz") else CONTENT)
    source = SourceFile("c/t.csv.gz", "https://127.0.0.1:9/never", sha256(CONTENT))
    assert locate(source, root=tmp_path / "root", cache=tmp_path / "cache") == path
    assert read_source(source, root=tmp_path / "root", cache=tmp_path / "cache") == CONTENT
    assert not (tmp_path / "cache").exists()


def test_a_data_folder_without_the_file_is_refused(served: SourceFile, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected .*corpus/table\.csv\.gz; no such file.*unset FAIRSISA_DATA"):
        locate(served, root=tmp_path, cache=tmp_path)
    assert Handler.requests == []


def test_a_damaged_file_is_refused_with_a_cure(served: SourceFile, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "table.csv").write_bytes(CONTENT[:-1])
    with pytest.raises(ChecksumError, match=r"table\.csv: expected .* got sha256:.*Delete it, then run"):
        locate(served, cache=tmp_path)
    with pytest.raises(ChecksumError, match=r"table\.csv: expected .* got sha256:.*Replace it by http"):
        locate(served, root=tmp_path, cache=tmp_path / "cache")
    packed = gzip.compress(CONTENT)
    for damaged in (packed[:-9], packed[:20] + b"\xff\xff\xff\xff" + packed[24:], b"no gzip at all"):
        (tmp_path / "corpus" / "table.csv.gz").write_bytes(damaged)
        with pytest.raises(ChecksumError, match="not a whole gzip file"):
            locate(served, root=tmp_path, cache=tmp_path / "cache")


def test_git_itself_agrees(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    done = subprocess.run(
        ["git", "hash-object", "--no-filters", "f"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    blob_id = done.stdout.strip()
    good = SourceFile("f", "https://127.0.0.1:9/never", f"git:{blob_id}")
    assert read_source(good, root=tmp_path, cache=tmp_path) == CONTENT
    bad = replace(good, checksum=f"git:{'0' * 8}")
    with pytest.raises(ChecksumError, match=f"expected content with git:00000000, got git:{blob_id}"):
        read_source(bad, root=tmp_path, cache=tmp_path)


@pytest.mark.parametrize("checksum", ["sha256:abc", "git:1234567", "md5:" + "0" * 32, "0" * 64])
def test_a_short_or_unknown_checksum_is_refused(checksum: str) -> None:
    with pytest.raises(ValueError, match="Expected a checksum sha256:<64 digits> or git:<8 to 40 digits>"):
        SourceFile("a", "https://example.org", checksum)


def test_github_urls_are_quoted() -> None:
    assert github_url("o/r", "c0ffee", "a b/c.csv") == "https://raw.githubusercontent.com/o/r/c0ffee/a%20b/c.csv"
