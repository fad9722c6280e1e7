"""The client of S3 and compatible stores. Endpoint and credentials come from the AWS settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from hepar.errors import DataError, StorageError, one_line
from hepar.runtime.redaction import redact
from hepar.runtime.remote_cache import CONNECTIONS

SCHEME = "s3://"
ATTEMPTS = 5
NOT_FOUND = 404


@cache
def client() -> Any:
    """One client per process; it retries with growing pauses."""
    import boto3  # slow to import, and every command imports the artifacts
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    session = boto3.Session()  # the default one keeps the first credentials that anything in the process found
    return session.client("s3", config=Config(retries=retries, max_pool_connections=4 * CONNECTIONS))


@contextmanager
def s3_errors(url: str) -> Iterator[None]:
    """Turn errors of boto3 into one that names the address: DataError if it is missing, else StorageError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        kind = DataError if status == NOT_FOUND else StorageError
        raise kind(f"{url}: {redact(one_line(error))}") from None
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise StorageError(f"{url}: {redact(one_line(error))}") from None
