"""What a release is made of, and the checks that it is whole: `python -m release`. For maintainers, in no package."""
