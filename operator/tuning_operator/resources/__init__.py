"""Pure builders, one file for each kind of Job."""
