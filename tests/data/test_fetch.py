"""Photos by URI: what answers is fetched whole, what doesn't is tried again, and then there is a reason."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from loopback import Handler, Server, serving
from odd_photos import encoded

from goods.data import fetch as module
from goods.data.ahead import PhotoReader
from goods.data.fetch import NotFetchedError, check_schemes, fetch, fetched, is_uri
from goods.errors import GoodsError

PHOTO = encoded(quality=90)


class Shop(Handler):
    """A shop whose photos come well, late, in part, or not at all."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked[path] += 1
        {"/drips.jpg": self.drip, "/silent.jpg": self.wait, "/cut.jpg": self.cut, "/chunk.jpg": self.cut_chunk,
         "/endless.jpg": self.endless}.get(path, self.answer)()  # fmt: skip

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved.jpg":
            self.say(302, b"", {"Location": "/a.jpg"})
        elif path == "/tired.jpg" and self.asked[path] < 3:
            self.say(500 if self.asked[path] == 1 else 503, b"not now")
        elif path in ("/gone.jpg", "/locked.jpg", "/broken.jpg"):
            self.say({"/gone.jpg": 404, "/locked.jpg": 403, "/broken.jpg": 500}[path], b"no")
        else:
            self.say(200, PHOTO, {"Content-Type": "image/jpeg"})

    def begin(self, length: int | None) -> None:
        self.send_response(200)
        self.send_header(*("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
        self.end_headers()
        self.close_connection = True

    def drip(self) -> None:
        self.begin(1000)
        for _ in range(40):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def wait(self) -> None:
        time.sleep(1)

    def cut(self) -> None:
        self.begin(len(PHOTO))
        self.wfile.write(PHOTO[:-100])

    def cut_chunk(self) -> None:
        self.begin(None)
        self.wfile.write(b"400\r\n" + PHOTO[:100])

    def endless(self) -> None:
        self.begin(10**9)
        for _ in range(200):
            self.wfile.write(bytes(10**5))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shop's address, where nobody waits long."""
    Shop.asked.clear()
    for name, value in (("PAUSE_SECONDS", 0.01), ("SILENCE_SECONDS", 0.2), ("WHOLE_SECONDS", 0.3)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "MOST_BYTES", 2**20)
    with serving(Server(Shop)) as server:
        yield server.url


GOOD = {"/a.jpg": 1, "/tired.jpg": 3, "/moved.jpg": 1, "/über uns/ä.jpg?w=9&h=é": 1, "/a%20b.jpg": 1}


@pytest.mark.parametrize("path", GOOD)
def test_what_answers_in_the_end_is_fetched_whole(shop: str, path: str) -> None:
    assert fetch(shop + path) == PHOTO
    assert Shop.asked.most_common(1)[0][1] == GOOD[path]


BAD = {
    "/gone.jpg": ("HTTP 404", 1), "/locked.jpg": ("HTTP 403", 1), "/broken.jpg": ("HTTP 500", 3),
    "/silent.jpg": ("no answer in 0.2 s", 3), "/drips.jpg": ("only [0-9] bytes came in 0.3 s", 3),
    "/cut.jpg": ("cut off, 100 bytes before its end", 3), "/chunk.jpg": ("cut off after", 3),
    "/endless.jpg": ("larger than 1 MiB", 1),
}  # fmt: skip


@pytest.mark.parametrize("path", BAD)
def test_what_does_not_answer_is_tried_again_where_that_may_help(shop: str, path: str) -> None:
    reason, tries = BAD[path]
    with pytest.raises(NotFetchedError, match=f"^{reason}"):
        fetch(shop + path)
    assert Shop.asked[path] == tries


def test_nobody_at_an_address_is_said_so(shop: str) -> None:
    with serving(Server(Shop)) as closed:
        address = closed.url
    with pytest.raises(NotFetchedError, match=r"no answer: .*refused"):
        fetch(f"{address}/a.jpg")
    for uri in ("http://[1/a.jpg", "http:///a.jpg", "http://a:b/a.jpg"):
        assert isinstance(fetched([uri])[0], NotFetchedError)


def test_other_places_are_read_by_their_own_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    (tmp_path / "größe 1%.jpg").write_bytes(PHOTO)
    fsspec.filesystem("memory").pipe("/bucket/a.jpg", PHOTO)
    fsspec.filesystem("memory").pipe("/bucket/large.jpg", bytes(module.MOST_BYTES + 1))
    uris = [(tmp_path / "größe 1%.jpg").as_uri(), "memory://bucket/a.jpg", (tmp_path / "no.jpg").as_uri(),
            tmp_path.as_uri(), "memory://bucket/no.jpg", "memory://bucket/large.jpg", "odd://a.jpg"]  # fmt: skip
    found = fetched([*uris, "a.jpg", b"bytes", ""])
    assert found[:2] == [PHOTO, PHOTO] and found[-3:] == ["a.jpg", b"bytes", ""]
    assert [str(why) for why in found[2:6]] == ["no such file"] * 3 + ["larger than 32 MiB"]
    assert "odd" in str(found[6])


def test_schemes_that_nothing_here_reads_are_refused_beforehand() -> None:
    check_schemes(["https://a/b.jpg", "file:///a.jpg", "memory://a.jpg", "zip://a.jpg::memory://b.zip"])
    for uri, why in (("odd://a.jpg", "photos at odd:// can't be read: .*odd"), ("s3://b/a.jpg", "s3fs"),
                     ("zip://a.jpg::gs://b/c.zip", "gcsfs")):  # fmt: skip
        with pytest.raises(GoodsError, match=why):
            check_schemes(["https://a/b.jpg", uri])


def test_what_is_a_uri() -> None:
    assert all(map(is_uri, ("https://a/b.jpg", "S3://a/b", "file:///a.jpg", "zip://a.jpg::s3://b.zip")))
    assert not any(map(is_uri, ("a.jpg", "", b"s3://a", "C:\\a.jpg", "/a/b://c", "a b://c", ("s3://a/b",))))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_photos_are_read_in_order_one_table_after_another(shop: str, tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    photos = [str(tmp_path / "a.jpg"), "", f"{shop}/a.jpg", f"{shop}/gone.jpg", PHOTO, str(tmp_path / "no.jpg"), b"no"]
    said = ["ok", "missing", "ok", "missing: HTTP 404", "ok", "missing", "unreadable: not a photo"]
    reader = PhotoReader(workers)
    next(reader.batches(photos, 8, 2))  # given up by who asked for it
    for size, table in ((16, photos), (8, photos[::-1])):
        batches = list(reader.batches(table, size, 3))
        assert [tuple(pixels.shape) for pixels, _ in batches] == [(3, 3, size, size)] * 2 + [(1, 3, size, size)]
        assert [status for _, found in batches for status in found] == (said if table is photos else said[::-1])
    assert list(reader.batches([], 8, 3)) == []
