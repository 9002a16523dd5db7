"""Feature-interaction models. They are given embedding layers and never build them."""
