"""`ouzel` and `python -m consumer`."""

from consumer.cli import app
from consumer.console import crash, fail
from consumer.errors import OuzelError


def main() -> None:
    """Run the command line; an error of ours is a message and an exit code, a traceback is a defect of ours."""
    try:
        app()
    except OuzelError as error:
        fail(error)
    except Exception as error:
        crash(error)


if __name__ == "__main__":
    main()
