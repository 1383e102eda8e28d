"""Folders and S3 prefixes behind one small interface.

A write is whole or not there at all: files are written to a temporary sibling and renamed, S3
objects are put in one request. A conditional write succeeds for one of two racing writers.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from storyrec.errors import ConfigError, Conflict, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


WHOLE_BYTES = 2**23
"""A larger object in S3 is read by ranges of RANGE_BYTES at least."""
RANGE_BYTES = 2**18
CONNECT_SECONDS, READ_SECONDS, NUM_ATTEMPTS = 5, 60, 4
"""How long S3 may be silent, and how often a request is tried."""

LOST_CONDITION = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")
"""How S3 says that a conditional write lost; a missing bucket is none of these."""


@dataclass(frozen=True)
class Stamp:
    """What a listing says of an object; another one after each write."""

    num_bytes: int
    tag: str


class Storage(ABC):
    """Objects below one folder or prefix, named by keys with forward slashes."""

    url: str

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted; temporary files are no keys."""

    @abstractmethod
    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """The stamp of every key that `list` gives."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes of an object; StorageError where there is none."""

    @abstractmethod
    def open(self, key: str) -> BinaryIO | None:
        """An object to read here and there, so that a large one need not be in memory; None where there is none."""

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        """An object's bytes and the version that `write_if` compares; None where there is none."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Put an object, replacing what was there."""

    @abstractmethod
    def write_if(self, key: str, content: bytes, *, version: str | None) -> None:
        """Put an object only if its version is still `version` (None: only if there is none).

        Raises:
            Conflict: the object changed, appeared or went meanwhile; nothing was written.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error where there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object with this key."""

    def sha256(self, key: str) -> str:
        """SHA-256 of the bytes of an object."""
        return hashlib.sha256(self.read(key)).hexdigest()

    def upload(self, folder: Path, prefix: str, *, last: str) -> None:
        """Put every file of a folder below `prefix`; the file named `last` goes last."""
        names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        kept = [name.as_posix() for name in names if not _is_hidden(name)]
        for name in sorted(kept, key=lambda name: (name == last, name)):
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise _file_error("read", folder / name, error) from error
            self.write(f"{prefix}/{name}", content)

    def download(self, prefix: str, folder: Path) -> None:
        """Write every object below `prefix` into a folder."""
        for key in self.list(prefix + "/"):
            write_file(folder / key[len(prefix) + 1 :], self.read(key))


class FolderStorage(Storage):
    """A folder of the local file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def list(self, prefix: str = "") -> list[str]:
        base = self.folder / prefix.rpartition("/")[0]
        if not base.is_dir():
            return []
        paths = (path.relative_to(self.folder) for path in base.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in paths if path.as_posix().startswith(prefix) and not _is_hidden(path))

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        found = {}
        for key in self.list(prefix):
            try:
                stat = (self.folder / key).stat()
            except OSError as error:
                raise _file_error("read", self.folder / key, error) from error
            found[key] = Stamp(stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ino}-{stat.st_size}")
        return found

    def read(self, key: str) -> bytes:
        with self._opened(key) as file:
            return file.read()

    def sha256(self, key: str) -> str:
        with self._opened(key) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[io.BufferedReader]:
        try:
            with (self.folder / key).open("rb") as file:
                yield file
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            remedy = "check the location in the settings"
            raise StorageError(f"there is no '{key}'", where=self.url, remedy=remedy) from error
        except OSError as error:
            raise _file_error("read", self.folder / key, error) from error

    def open(self, key: str) -> BinaryIO | None:
        try:
            return (self.folder / key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _file_error("read", self.folder / key, error) from error

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        try:
            content = (self.folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _file_error("read", self.folder / key, error) from error
        return content, hashlib.sha256(content).hexdigest()

    def write(self, key: str, content: bytes) -> None:
        write_file(self.folder / key, content)

    def write_if(self, key: str, content: bytes, *, version: str | None) -> None:
        with self._lock(key):
            found = self.read_versioned(key)
            if (found[1] if found else None) != version:
                raise _conflict(key, self.url)
            self.write(key, content)

    def delete(self, key: str) -> None:
        try:
            (self.folder / key).unlink(missing_ok=True)
        except OSError as error:
            raise _file_error("delete", self.folder / key, error) from error

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        path = self.folder / key
        with one_writer(path.with_name(f".{path.name}.lock")):
            yield


class S3Storage(Storage):
    """A prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str = "") -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.url = f"s3://{bucket}/{self.prefix}"
        self.endpoint = endpoint
        with self._errors("open", self.prefix):
            self._client = open_s3(endpoint)

    def list(self, prefix: str = "") -> list[str]:
        return list(self.stamps(prefix))

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._name(prefix)
            )
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        start = len(self._name(""))
        return {e["Key"][start:]: Stamp(e["Size"], e["ETag"]) for e in sorted(entries, key=lambda e: e["Key"])}

    def read(self, key: str) -> bytes:
        found = self.read_versioned(key)
        if found is None:
            raise StorageError(f"there is no '{key}'", where=self.url, remedy="check the location in the settings")
        return found[0]

    def open(self, key: str) -> BinaryIO | None:
        from botocore.exceptions import ClientError

        with self._errors("look up", key):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

        if head["ContentLength"] <= WHOLE_BYTES:
            return io.BytesIO(self.read(key))
        version = head["ETag"].strip('"')  # some gateways only compare the unquoted tag

        def read_range(start: int, stop: int) -> bytes:
            with self._errors("read", key):
                answer = self._client.get_object(
                    Bucket=self.bucket, Key=self._name(key), Range=f"bytes={start}-{stop - 1}", IfMatch=version
                )
                return answer["Body"].read()

        return io.BufferedReader(_Ranges(read_range, size=head["ContentLength"]), buffer_size=RANGE_BYTES)

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        with self._errors("read", key):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            except self._client.exceptions.NoSuchKey:
                return None
            return answer["Body"].read(), answer["ETag"]

    def write(self, key: str, content: bytes) -> None:
        with self._errors("write", key):
            self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=content)

    def write_if(self, key: str, content: bytes, *, version: str | None) -> None:
        from botocore.exceptions import ClientError

        # some gateways only compare the unquoted tag
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version.strip('"')}
        with self._errors("write", key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=content, **condition)  # type: ignore[arg-type]
            except ClientError as error:
                if error.response["Error"]["Code"] not in LOST_CONDITION:
                    raise
                retried = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                if retried and self.read(key) == content:
                    return  # the first attempt was written and only its answer got lost
                raise _conflict(key, self.url) from error

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors("look up", key):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
            return True

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint that is no address
            raise StorageError(
                f"S3 did not {verb} '{key}': {error}",
                expected="an S3 endpoint that answers, with this bucket and these credentials",
                where=f"{self.url} at {self.endpoint or 'the default endpoint'}",
                remedy="check locations.s3_endpoint, the bucket and the AWS credentials",
            ) from error


class _Ranges(io.RawIOBase):
    """An object of which only the ranges that somebody reads are fetched."""

    def __init__(self, read_range: Callable[[int, int], bytes], *, size: int) -> None:
        self._read_range, self._size, self._place = read_range, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._size)
        if stop <= self._place:
            return 0
        content = self._read_range(self._place, stop)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def open_storage(url: str, *, s3_endpoint: str = "") -> Storage:
    """The storage that a location names: `s3://bucket/prefix`, `file:///folder` or a plain folder."""
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(
                f"'{url}' names no bucket", expected="s3://bucket/prefix", where="locations of the settings"
            )
        return S3Storage(bucket, prefix, endpoint=s3_endpoint)
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(
            f"'{url}' is no location",
            expected="a folder, file:///folder or s3://bucket/prefix",
            where="locations of the settings",
            remedy="name one of these",
        )
    return FolderStorage(Path(url.removeprefix("file://")))


def open_s3(endpoint: str = "") -> "S3Client":
    """A client of an S3 endpoint, empty for the one that boto3's own settings name."""
    from boto3.session import Session
    from botocore.config import Config as BotoConfig

    settings = BotoConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": NUM_ATTEMPTS},
        request_checksum_calculation="when_required",  # gateways other than AWS refuse the newer trailers
        response_checksum_validation="when_required",
    )
    # a session of its own: the shared default one is not safe to open clients from several threads
    return Session().client("s3", endpoint_url=endpoint or None, config=settings)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the disk is full or the folder refuses; what was there before stays.
    """
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: none takes its place before all of them lie on the disk.

    Raises:
        StorageError: the disk is full or a folder refuses; what was there before stays.
    """
    path = Path()
    temporaries: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporaries[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporaries[path], 0o644)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise _file_error("write", path, error) from error


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock file, and hold it; the kernel frees it if we are killed.

    Raises:
        StorageError: the disk is full or the folder refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise _file_error("lock", path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when the block ends without an error.

    Yields a temporary sibling; on success it replaces `target` whole, on failure it is removed.

    Raises:
        StorageError: the disk is full or the folder refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*"):  # of a killed run: a step has one writer
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise _file_error("write", target, error) from error
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced")
            target.rename(replaced)
            temporary.rename(target)
            shutil.rmtree(replaced)
        else:
            temporary.rename(target)
    except OSError as error:
        raise _file_error("write", target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_error(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot {verb} this path: {error.strerror or error}",
        where=str(path),
        remedy="free space on the disk or correct the folder's permissions, then run the same command again",
    )


def _conflict(key: str, url: str) -> Conflict:
    return Conflict(
        f"'{key}' was changed by somebody else meanwhile",
        where=url,
        remedy="look at what is deployed now, then try again",
    )
