"""A local web page to accept, reject or correct pseudo-livers."""

from hepar.pseudo_labels.review_page.server import serve

__all__ = ["serve"]
