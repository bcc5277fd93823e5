"""The version, in one place; packaging and the manifest read it here."""

__version__ = "0.1.0"
