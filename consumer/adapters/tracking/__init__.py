"""Where a replica's figures are noted over time."""
