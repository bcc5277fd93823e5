"""The kopf operator: turns custom resources into Jobs and honest statuses."""
