"""The commands `webhook add`, `list` and `remove`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hepar.errors import DataError

SECRET_VARIABLE = "HEPAR_WEBHOOK_SECRET"  # not an option: every user of a machine can read a command line

webhooks_app = typer.Typer(
    no_args_is_help=True, help="Tell deployments about new champions: webhooks of the MLflow server."
)


@webhooks_app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where the MLflow server sends a POST; https, unless it allows http.")],
    name: Annotated[str, typer.Option(help="A name for it.")] = "hepar",
) -> None:
    """Let the MLflow server tell an address whenever a version becomes champion.

    The messages are signed with the secret in HEPAR_WEBHOOK_SECRET, which the receiver needs too.
    """
    from hepar.registry.webhooks import Webhook, add_webhook

    if not (secret := os.environ.get(SECRET_VARIABLE, "")):
        raise DataError(f"{SECRET_VARIABLE} is not set: it holds the secret that the messages are signed with")
    add_webhook(Webhook(name, url), secret)
    print(f"{name}: {url}")


@webhooks_app.command(name="list")
def list_all() -> None:
    """List the webhooks of the MLflow server that tell of aliases."""
    from hepar.registry.webhooks import list_webhooks

    for webhook in list_webhooks():
        print(f"{webhook.name}  {webhook.url}")


@webhooks_app.command()
def remove(name: Annotated[str, typer.Argument(help="The name that it was added with.")]) -> None:
    """Remove a webhook."""
    from hepar.registry.webhooks import remove_webhook

    remove_webhook(name)
    print(f"{name}: removed")
