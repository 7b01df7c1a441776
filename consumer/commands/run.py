"""`ouzel run`: the service, and the relabelling of a range."""

import time
from typing import Annotated

import typer

from consumer.errors import Fatal


def run(
    ctx: typer.Context,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on although an earlier replica stopped at the dead-letter limit.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME|earliest", help="Only messages since then; ends when they are labelled."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME|end", help="Only messages before then; `end`: those there are now.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Consumer group of this range and of no other; with --from and --until.")
    ] = None,
) -> None:
    """Join the consumer group and label images until told to stop.

    With --from, --until and --group it labels a range of the input topics again, ends with exit code 0 when all
    replicas of that group are through with it, and with 15 if it is stopped before: the same command then goes on.

        ouzel run --from 2026-01-31T09:30:00Z --until end --group relabel-2026-02

    SIGTERM finishes what is in flight, commits and leaves the group: exit 0. A second signal ends at once. SIGUSR1
    goes on after the dead-letter limit; SIGHUP looks for a new version of the model at once. Exit codes: 2 settings,
    3 model, 4 model stuck, 5 broker, 6 topic missing, 7 not authorized, 8 output refused, 9 group.instance.id taken,
    10 dead-letter limit, 12 records lost, 13 a decode that does not return, 14 no sandbox, 15 range not done,
    17 a partition without progress, 18 transaction.id taken, 19 share group refused, 70 anything else.
    """
    from consumer.commands.doctor import check_client_properties
    from consumer.console import read_settings_again, settings_and_sources_from
    from consumer.rights import named_in_full
    from consumer.service import end_service, run_service

    settings, sources = settings_and_sources_from(ctx)
    check_client_properties(settings)
    if since is None and until is None and group is None:
        try:
            run_service(settings, resume=resume, read_settings=lambda: read_settings_again(ctx), sources=sources)
        except Fatal as error:
            end_service(named_in_full(error, settings))
        end_service()
    if since is None or until is None or group is None:
        raise typer.BadParameter("--from, --until and --group belong together: a range has a group of its own")

    from consumer.commands._range import in_group, range_of, telling_progress

    if settings.delivery.guarantee == "share":
        raise typer.BadParameter(
            'a share group has no offsets to end at: set delivery.guarantee = "at_least_once" for a range'
        )
    settings = in_group(settings, group)
    relabel = range_of(since, until, now_ms=time.time_ns() // 1_000_000)
    ended_by: Fatal | None = None
    with telling_progress(group) as on_progress:
        try:
            run_service(settings, resume=resume, relabel=relabel, on_progress=on_progress, sources=sources)
        except Fatal as error:
            ended_by = named_in_full(error, settings)
    end_service(ended_by)
