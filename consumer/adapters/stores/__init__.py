"""Where images live: one adapter for each scheme, all under `tests/contract/test_image_store.py`."""
