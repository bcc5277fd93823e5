"""TuningJob: observe, desire (pure), build, status."""
