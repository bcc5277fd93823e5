"""The fixture of a small project of the same shape as ours."""

from tests.support.release_project import project

__all__ = ["project"]
