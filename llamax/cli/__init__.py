"""One thin file per verb: flags to a Config to one call."""
