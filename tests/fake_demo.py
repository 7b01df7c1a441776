"""`ouzel demo` with the stand-in service: `python -m tests.fake_demo demo ...`."""

from consumer.__main__ import main
from consumer.demo import service

if __name__ == "__main__":
    service.RUN = ("-m", "tests.fake_service")
    main()
