"""InferenceService: observe, desire (pure), build, status."""
