"""Models as they lie on disk: artifacts and bare ones, opened and verified."""
