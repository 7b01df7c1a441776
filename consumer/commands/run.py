"""`ouzel run`: the service."""

from typing import Annotated

import typer

from consumer.errors import Fatal


def run(
    ctx: typer.Context,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on although an earlier replica stopped at the dead-letter limit.")
    ] = False,
) -> None:
    """Join the consumer group and label images until told to stop.

    SIGTERM finishes what is in flight, commits and leaves the group: exit 0. A second signal ends at once. SIGUSR1
    goes on after the dead-letter limit. Exit codes: 2 settings, 3 model, 4 model stuck, 5 broker, 6 topic missing,
    7 not authorized, 8 output refused, 9 group.instance.id taken, 10 dead-letter limit, 12 records lost,
    13 a decode that does not return, 14 no sandbox, 70 anything else.
    """
    from consumer.commands.doctor import check_client_properties
    from consumer.console import settings_from
    from consumer.rights import named_in_full
    from consumer.service import end_service, run_service

    settings = settings_from(ctx)
    check_client_properties(settings)
    try:
        run_service(settings, resume=resume)
    except Fatal as error:
        end_service(named_in_full(error, settings.kafka))
    end_service()
