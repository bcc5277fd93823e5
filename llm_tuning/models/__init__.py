"""What lies in `models/` and under a base's folder: manifests, registry, cards, adapter files. No torch."""
