"""The project's container images, built from its own Dockerfiles without an engine and without a registry."""

from devcluster.images.building import RECIPES, build
from devcluster.images.command import main
from devcluster.images.exporting import load_into
from devcluster.images.storage import ImageError, image_id

__all__ = ["RECIPES", "ImageError", "build", "image_id", "load_into", "main"]
