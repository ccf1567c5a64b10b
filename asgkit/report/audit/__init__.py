"""Published numbers against each other: relations, power, conflicts between sources."""
