"""What a training is the training of: champion, reviews, params, splits, beside the data. One state is trained once."""

from __future__ import annotations

from typing import Any

from hepar.inference.model_folder import ModelFolder
from hepar.ingest.splits import read_splits
from hepar.params import CHAMPION, PipelineParams, dump_params
from hepar.pseudo_labels.stored_reviews import open_reviews
from hepar.registry.model_registry import ModelVersion, RegisteredModel
from hepar.registry.tracking import connect, has_server
from hepar.runtime.artifacts import sha256_json


def find_champion(name: str) -> ModelVersion | None:
    """The champion of a registered model; None without one, or without a registry."""
    return RegisteredModel(connect(), name).version_by_alias(CHAMPION) if has_server() else None


def training_identity(params: PipelineParams, champion: ModelVersion | None, reviews: str) -> dict[str, Any]:
    """JSON values that differ if a training may give another model on the same data; `reviews` is their hash.

    Raises DataError if there is no table of splits where the params name one, StorageError if S3 does not answer.
    """
    table = params.ingest.split_from
    return {
        **({"splits": sha256_json(read_splits(table))} if table else {}),
        "champion": "" if champion is None else champion.uri,
        ModelFolder.KIND: "" if champion is None else champion.model_hash,
        "reviews": reviews,
        "params": dump_params(params),
    }


def reviews_hash(place: str) -> str:
    """The hash of the reviews that a pool takes, in a folder or store; that of none if `place` is empty."""
    with open_reviews(place) as reviews:
        return reviews.hash
