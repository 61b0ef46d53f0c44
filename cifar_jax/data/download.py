"""Download with resume and checksum, from the standard library alone."""

import hashlib
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from cifar_jax.errors import InputError

CONNECT_SECONDS = 1.5  # name look-up and TCP connection together; an offline machine answers within 2 s
READ_SECONDS = 30.0  # silence after which a download counts as cut off


def download(url: str, sha256: str, archive: Path, progress: bool) -> None:
    """Downloads `url` to `archive` by way of `<archive>.part`; only bytes with this checksum get the name.

    An archive that exists is checked, not downloaded again; a `.part` is continued.

    Raises InputError for a wrong checksum, and URLError, HTTPException, ConnectionError or TimeoutError where
    the connection fails.
    """
    part = archive.with_name(archive.name + ".part")
    source = archive if archive.exists() else part
    if source is part:
        _check_connection(url)
        _fetch(url, part, progress)
    with open(source, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        source.unlink()
        raise InputError(
            f"the download from {url} has sha256 {found} where {sha256} was expected; it was removed:"
            " start again, and if this repeats, something between here and the server changes the file"
        )
    os.replace(source, archive)


def _check_connection(url: str) -> None:
    """Raises TimeoutError or another OSError unless the server (or its proxy) accepts a connection at once.

    A look-up of a name has no time limit of its own and takes up to minutes without a network, so it runs in
    a thread that is left behind.
    """
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer from {address[0]} within {CONNECT_SECONDS} s")
    if outcome[0] is not None:
        raise ConnectionError(f"{address[0]}: {outcome[0].strerror or outcome[0]}")


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Appends to `part` what it still lacks of `url`; starts it again where the server does not serve ranges.

    Raises URLError, HTTPException, ConnectionError or TimeoutError; what has come by then stays in `part`.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=READ_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is there: the checksum says whether it is right
            return
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from error
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while block := response.read(1 << 18):
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if total is not None and have < total:
        raise ConnectionError(f"cut off after {have:,} of {total:,} bytes")
