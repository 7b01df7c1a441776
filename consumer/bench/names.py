"""The topics and groups of a run: all of one prefix, and of no other run."""

from dataclasses import dataclass

from consumer.bench.results import Plan
from consumer.bench.service_run import Names


@dataclass(frozen=True, slots=True)
class TopicNames:
    """All topics of a run."""

    prefix: str

    @property
    def images(self) -> str:
        """The backlog: filled once, read by every round under another group."""
        return f"{self.prefix}-images"

    @property
    def latency(self) -> str:
        """Where loads go."""
        return f"{self.prefix}-latency"

    @property
    def letters(self) -> str:
        """Nothing should come here."""
        return f"{self.prefix}-letters"

    @property
    def echo(self) -> str:
        """Of the bare round trip."""
        return f"{self.prefix}-echo"

    def bare(self, number: int) -> str:
        """The bare loop's output in a round."""
        return f"{self.prefix}-bare-{number}"

    def output(self, part: str) -> str:
        """The service's output."""
        return f"{self.prefix}-predictions-{part}"

    def all(self, plan: Plan) -> list[str]:
        """Every topic that the plan needs."""
        rounds = range(plan.rounds)
        by_round = [name for number in rounds for name in (self.bare(number), self.output(str(number)))]
        of_latency = [self.latency, self.echo, self.output("latency")] if plan.loads else []
        return [self.images, self.letters, *by_round, *of_latency]

    def group(self, part: str) -> str:
        """The consumer group of a run of the service, or of a bare loop."""
        return f"{self.prefix}-{part}"

    def groups(self, plan: Plan) -> list[str]:
        """Every group of the plan."""
        parts = [part for number in range(plan.rounds) for part in (f"bare-{number}", str(number))]
        return [self.group(part) for part in (*parts, *(["latency"] if plan.loads else []))]

    def of_service(self, part: str, *, input_topic: str) -> Names:
        """A run of the service."""
        return Names(input_topic, self.output(part), self.letters, self.group(part))
