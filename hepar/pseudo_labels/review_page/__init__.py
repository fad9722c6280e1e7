"""A page on this machine alone, on which a person accepts, rejects or corrects pseudo-livers."""

from hepar.pseudo_labels.review_page.server import serve

__all__ = ["serve"]
