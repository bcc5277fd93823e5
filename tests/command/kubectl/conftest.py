"""The API server that the plugin's unit tests have."""

from tests.unit.llm_tuning.kubectl.conftest import server

__all__ = ["server"]
