"""What Ceph's gateway alone refuses; every other test of S3 runs against it too where it is asked for."""

import pytest

from ceph_gateway import ASKED
from s3_server import S3Server
from storyrec.errors import Conflict, StorageError
from storyrec.storage import S3Storage

pytestmark = pytest.mark.skipif(not ASKED, reason="STORYREC_TEST_S3=ceph asks for it: make test-ceph")


def test_a_wrong_secret_is_refused_and_nothing_is_written(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = s3.new_storage()
    storage.write_if("champion.json", b"ours", version=None)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        stranger = S3Storage(storage.bucket, storage.prefix, endpoint=s3.endpoint)
    for act in (
        lambda: stranger.read("champion.json"),
        lambda: stranger.write("champion.json", b"theirs"),
        lambda: stranger.write_if("new.json", b"theirs", version=None),
        lambda: stranger.delete("champion.json"),
    ):
        with pytest.raises(StorageError, match="SignatureDoesNotMatch") as caught:
            act()
        assert not isinstance(caught.value, Conflict)
        assert "AWS credentials" in caught.value.remedy
    assert storage.list() == ["champion.json"]
    assert storage.read("champion.json") == b"ours"


def test_the_tag_is_compared_without_its_quotes_alone(s3: S3Server) -> None:
    """Why `write_if` strips them: with them this gateway refuses the version that is there."""
    storage = s3.new_storage()
    storage.write("champion.json", b"before")
    found = storage.read_versioned("champion.json")
    assert found is not None
    quoted = found[1]
    assert quoted.startswith('"')
    client = storage._client
    with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=storage.bucket, Key="registry/champion.json", Body=b"after", IfMatch=quoted)
    storage.write_if("champion.json", b"after", version=quoted)
    assert storage.read("champion.json") == b"after"
    with pytest.raises(Conflict):
        storage.write_if("champion.json", b"lost", version=quoted)
