"""Tools for those who develop the harness; not part of the package."""
