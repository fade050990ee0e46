"""Photos by URI: fetched whole or not at all, tried again where nobody answers, within limits of time and size."""

from __future__ import annotations

import http.client
import re
import time
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from goods.errors import GoodsError

AT_ONCE = 32  # photos that a process asks for
MOST_BYTES = 32 * 2**20  # of one photo
TRIES = 3
PAUSE_SECONDS = 0.5  # before the second try, and twice as long before each further one
SILENCE_SECONDS = 10.0  # without a single byte
WHOLE_SECONDS = 30.0  # of one try, however its bytes drip
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # what HTTP answers where another try may help
_SCHEME = re.compile(r"(?:^|::)([A-Za-z][A-Za-z0-9+.-]*)://")  # chained, as fsspec has them: zip://a.jpg::s3://b.zip


class NotFetchedError(Exception):
    """There is no photo at a URI; the text says why, for a list of bad photos."""


class NoAnswerError(NotFetchedError):
    """Nobody answered, or not to the end: another try may help."""


def is_uri(photo: object) -> bool:
    """Whether a photo is named by a URI, such as https://... or s3://..."""
    return isinstance(photo, str) and bool(_SCHEME.match(photo))


def check_schemes(uris: Iterable[str]) -> None:
    """Raises GoodsError where a package is needed to read one of the URIs, or nothing can read it."""
    schemes = {scheme.lower() for uri in uris for scheme in _SCHEME.findall(uri)} - {"http", "https", "file"}
    for scheme in sorted(schemes):
        try:
            _filesystems().get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise GoodsError(f"photos at {scheme}:// can't be read: {error}") from None


def fetch(uri: str) -> bytes:
    """The photo at a URI: http, https and file by Python itself, all others by fsspec.

    Raises NotFetchedError, after TRIES tries where nobody answers.
    """
    scheme = uri.partition("://")[0].lower()
    read = {"http": _by_http, "https": _by_http, "file": _from_disk}.get(scheme, _by_fsspec)
    for number in range(1, TRIES):
        try:
            return read(uri)
        except NoAnswerError:
            time.sleep(PAUSE_SECONDS * 2 ** (number - 1))
    return read(uri)


def fetched(photos: Sequence[str | bytes]) -> list[str | bytes | NotFetchedError]:
    """(n,) photos with what was found at those that are URIs, AT_ONCE of them asked for side by side."""
    uris = list(dict.fromkeys(photo for photo in photos if is_uri(photo)))
    if not uris:
        return list(photos)
    with ThreadPoolExecutor(min(AT_ONCE, len(uris))) as pool:
        found = dict(zip(uris, pool.map(_fetched, uris), strict=True))
    return [found[photo] if is_uri(photo) else photo for photo in photos]


def _fetched(uri: str) -> bytes | NotFetchedError:
    try:
        return fetch(uri)
    except NotFetchedError as why:
        return why


def _by_http(uri: str) -> bytes:
    until, data = time.monotonic() + WHOLE_SECONDS, bytearray()
    try:
        request = urllib.request.Request(quote(uri, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "goods"})
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
            while piece := answer.read1(1 << 16):
                data += piece
                _refuse_large(len(data))
                if time.monotonic() > until:
                    raise NoAnswerError(f"only {len(data):,} bytes came in {WHOLE_SECONDS:g} s")
            if answer.length:  # of which http.client says nothing
                raise NoAnswerError(f"cut off, {answer.length:,} bytes before its end")
    except HTTPError as error:
        error.close()
        raise (NoAnswerError if error.code in TRY_AGAIN else NotFetchedError)(f"HTTP {error.code}") from None
    except TimeoutError:
        raise NoAnswerError(f"no answer in {SILENCE_SECONDS:g} s") from None
    except http.client.IncompleteRead:
        raise NoAnswerError(f"cut off after {len(data):,} bytes") from None
    except ValueError as error:  # no address at all; http.client's InvalidURL is one
        raise NotFetchedError(str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        said = f"no answer in {SILENCE_SECONDS:g} s" if isinstance(reason, TimeoutError) else f"no answer: {reason}"
        raise NoAnswerError(said) from None
    return bytes(data)


def _from_disk(uri: str) -> bytes:
    try:
        path = Path(urllib.request.url2pathname(urlsplit(uri).path))
        _refuse_large(path.stat().st_size)
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, ValueError):
        raise NotFetchedError("no such file") from None
    except OSError as error:  # of a network drive, perhaps
        raise NoAnswerError(error.strerror or type(error).__name__) from None


def _by_fsspec(uri: str) -> bytes:
    try:
        with _filesystems().open(uri, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFetchedError("no such file") from None
    except (ImportError, ValueError, PermissionError) as error:
        raise NotFetchedError(_in_a_line(error)) from None
    except Exception as error:  # each filesystem has its own
        raise NoAnswerError(f"no answer: {_in_a_line(error)}") from None
    _refuse_large(len(data))
    return data


def _refuse_large(size: int) -> None:
    if size > MOST_BYTES:
        raise NotFetchedError(f"larger than {MOST_BYTES >> 20} MiB")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _filesystems() -> ModuleType:
    import fsspec  # comes with torch; only some tables ask for it

    return fsspec
