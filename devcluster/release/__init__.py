"""What a release is made of, and the checks that it is whole. For maintainers; in no package."""
