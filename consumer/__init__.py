"""Ouzel: a long-running Kafka consumer service that labels images and loses none."""

__version__ = "0.2.0.dev0"
