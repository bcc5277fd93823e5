"""The server of the API's answers that the client's unit tests have."""

from tests.unit.llm_tuning.client.conftest import server

__all__ = ["server"]
