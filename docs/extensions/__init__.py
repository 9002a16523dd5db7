"""Small Sphinx extensions of this site."""
