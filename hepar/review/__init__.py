"""A page on this machine alone, on which a person accepts, rejects or corrects pseudo-livers."""

from hepar.review.server import serve

__all__ = ["serve"]
