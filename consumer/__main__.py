"""`ouzel` and `python -m consumer`."""

from consumer.cli import app
from consumer.console import fail
from consumer.errors import OuzelError


def main() -> None:
    """Run the command line; an error of ours is a message and an exit code, never a traceback."""
    try:
        app()
    except OuzelError as error:
        fail(error)


if __name__ == "__main__":
    main()
