"""The bytes behind a picture's URI: a local file below one folder, or an object in S3.

URIs come from logs and are not trusted. What is wrong with one picture is a BrokenPicture; what is wrong with
the place, so that another try may find the picture, is a StorageError.
"""

import contextlib
import errno
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from storyrec.errors import StorageError
from storyrec.features.pictures import BrokenPicture
from storyrec.storage import open_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NUM_ATTEMPTS = 3
DENIED = ("AccessDenied", "AllAccessDisabled", "InvalidObjectState")  # other refusals are of our credentials
NO_NAME = ("InvalidBucketName", "InvalidURI", "KeyTooLongError")


class PictureFiles:
    """Reads the files of pictures; several threads may do so at once."""

    def __init__(self, *, folder: Path | None, s3_endpoint: str, max_bytes: int) -> None:
        """Open nothing yet.

        Args:
            folder: local pictures lie below it, relative ones are meant from it; None: there are no local ones.
            s3_endpoint: empty for the one that boto3's own settings name.
            max_bytes: of a file; a larger one is not read.
        """
        self._folder = folder.resolve() if folder else None
        self._s3_endpoint = s3_endpoint
        self._max_bytes = max_bytes

    def read(self, uri: str) -> bytes:
        """The bytes of a picture: a path, `file:///path` or `s3://bucket/key`.

        Raises:
            BrokenPicture: there is none, it may not be read, it is too large, or the URI names no allowed place.
            StorageError: disk or S3 fails.
        """
        if uri.startswith("s3://"):
            return self._read_object(uri)
        return self._read_file(unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri)

    def _read_file(self, name: str) -> bytes:
        if self._folder is None:
            raise BrokenPicture("picture_location", "a local path, and covers.picture_folder names no folder")
        try:
            path = (self._folder / name).resolve()
            if not path.is_relative_to(self._folder):
                raise BrokenPicture("picture_location", f"a path outside of {self._folder}")
            if not path.is_file():
                self._require_folder()
                raise BrokenPicture("picture_there", "there is no such file")
            with path.open("rb") as file:
                content = file.read(self._max_bytes + 1)
        except (ValueError, RuntimeError) as error:  # a zero byte, a circle of links
            raise BrokenPicture("picture_location", str(error)) from None
        except PermissionError:
            raise BrokenPicture("picture_readable", "the file's permissions refuse") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise BrokenPicture("picture_location", "the path is too long") from None
            raise StorageError(
                f"a picture cannot be read: {error.strerror or error}",
                where=str(self._folder / name),
                remedy="mend the disk or the mount, then run the same command again",
            ) from error
        self._require_small(len(content))
        return content

    def _require_folder(self) -> None:
        """A folder that is gone, such as a mount, is no fault of every picture in it."""
        if self._folder is None or not self._folder.is_dir():
            raise StorageError(
                "the folder of the pictures is not there",
                where=str(self._folder),
                remedy="mount it or correct covers.picture_folder, then run the same command again",
            )

    def _read_object(self, uri: str) -> bytes:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            IncompleteReadError,
            ParamValidationError,
            ResponseStreamingError,
        )

        bucket, _, key = uri.removeprefix("s3://").partition("/")
        for attempt in range(NUM_ATTEMPTS):
            try:
                answer = self._s3.get_object(Bucket=bucket, Key=key)
                with contextlib.closing(answer["Body"]) as body:
                    self._require_small(answer["ContentLength"])
                    return body.read()
            except ParamValidationError:
                raise BrokenPicture("picture_location", "no name of an S3 object") from None
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    raise BrokenPicture("picture_there", f"S3 says {code}") from None
                if code in DENIED:
                    raise BrokenPicture("picture_readable", f"S3 says {code}") from None
                if code in NO_NAME:
                    raise BrokenPicture("picture_location", f"S3 says {code}") from None
                raise self._failed(uri, error) from error
            except (IncompleteReadError, ResponseStreamingError) as error:  # boto3 itself tries only requests again
                if attempt == NUM_ATTEMPTS - 1:
                    raise self._failed(uri, error) from error
            except (BotoCoreError, ValueError) as error:
                raise self._failed(uri, error) from error
        raise AssertionError("an attempt returns or raises")

    @cached_property
    def _s3(self) -> "S3Client":
        return open_s3(self._s3_endpoint)

    def _require_small(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise BrokenPicture("picture_file_size", f"more than {self._max_bytes:,} bytes")

    def _failed(self, uri: str, error: Exception) -> StorageError:
        return StorageError(
            f"S3 did not read a picture: {error}",
            expected="an S3 endpoint that answers, and credentials that it accepts",
            where=f"{uri} at {self._s3_endpoint or 'the default endpoint'}",
            remedy="check locations.s3_endpoint and the AWS credentials, then run the same command again: "
            "it goes on where it stopped",
        )
